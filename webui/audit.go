package webui

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

const (
	mediaNDJSON = "application/x-ndjson"

	// exportPage is how many records are read at a time: what one export holds in memory. It is a
	// multiple of audit.HashesPerLine.
	exportPage = 2 * audit.HashesPerLine
	// exportPatience is how long a client may take for a page.
	exportPatience = 30 * time.Second
	// maxExports run at a time: each reads the whole log.
	maxExports = 2
)

// InclusionProof is the body of GET /api/v1/audit/proof/inclusion.
type InclusionProof struct {
	Index    uint64   `json:"index" doc:"of the record"`
	Size     uint64   `json:"size" doc:"records of the log that is proven to have it"`
	LeafHash []byte   `json:"leaf_hash" doc:"RFC 6962 leaf hash of the record"`
	Hashes   [][]byte `json:"hashes" doc:"RFC 6962 §2.1.1 audit path, from the leaf up"`
}

// ConsistencyProof is the body of GET /api/v1/audit/proof/consistency.
type ConsistencyProof struct {
	From   uint64   `json:"from" doc:"records of the shorter log"`
	To     uint64   `json:"to" doc:"records of the longer log"`
	Hashes [][]byte `json:"hashes" doc:"RFC 6962 §2.1.2 proof"`
}

// auditRoutes are what an auditor verifies the log with.
func auditRoutes() []route {
	get := http.MethodGet
	number := func(name, description string) parameter {
		return parameter{name, description, map[string]any{"type": "integer", "minimum": 0}}
	}
	return []route{
		{get, apiPrefix + "audit/checkpoint", auditor, &operation{
			id: "auditCheckpoint", summary: "Length and root hash of the audit log, signed by the box's audit key (C2SP tlog-checkpoint); made anew at most every second",
			responses: []response{{http.StatusOK, "a signed note", mediaText, nil}},
			refusals:  []int{http.StatusServiceUnavailable},
		}, (*console).apiAuditCheckpoint},
		{get, apiPrefix + "audit/key", auditor, &operation{
			id: "auditKey", summary: "The key that verifies checkpoints (C2SP signed-note), as signet audit verify takes it",
			responses: []response{{http.StatusOK, "NAME+HASH+BASE64 and a line end", mediaText, nil}},
		}, (*console).apiAuditKey},
		{get, apiPrefix + "audit/export", auditor, &operation{
			id: "auditExport", summary: "The whole audit log, as far as retention left it, for signet audit verify: a record a line, then what verifies them, the checkpoint last",
			responses: []response{{http.StatusOK, "JSON, one object a line", mediaNDJSON, nil}},
			refusals:  []int{http.StatusServiceUnavailable},
		}, (*console).apiAuditExport},
		{get, apiPrefix + "audit/proof/inclusion", auditor, &operation{
			id: "auditInclusion", summary: "Proof that the log has a record (RFC 6962 §2.1.1)",
			query: []parameter{
				number("index", "of the record; needed"),
				number("size", "records of the log; absent for that of the checkpoint"),
			},
			responses: []response{{http.StatusOK, "the proof", mediaJSON, InclusionProof{}}},
			refusals:  []int{http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusServiceUnavailable},
		}, (*console).apiInclusion},
		{get, apiPrefix + "audit/proof/consistency", auditor, &operation{
			id: "auditConsistency", summary: "Proof that the log continues what it was before (RFC 6962 §2.1.2)",
			query: []parameter{
				number("from", "records it had before, at least one; needed"),
				number("to", "records it had after; absent for those of the checkpoint"),
			},
			responses: []response{{http.StatusOK, "the proof", mediaJSON, ConsistencyProof{}}},
			refusals:  []int{http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusServiceUnavailable},
		}, (*console).apiConsistency},
	}
}

func (c *console) apiAuditCheckpoint(w http.ResponseWriter, _ *http.Request, _ principal) error {
	signed, err := c.cfg.Audit.Checkpoint()
	if err != nil {
		return fmt.Errorf("making a checkpoint: %w", err)
	}
	write(w, http.StatusOK, mediaText, signed)
	return nil
}

func (c *console) apiAuditKey(w http.ResponseWriter, _ *http.Request, _ principal) error {
	write(w, http.StatusOK, mediaText, []byte(c.cfg.Audit.Key()+"\n"))
	return nil
}

// sizeOr reads a query parameter that is a length of the log, by default that of the checkpoint.
func (c *console) sizeOr(r *http.Request, name string) (uint64, error) {
	if r.URL.Query().Get(name) != "" {
		return queryUint(r, name, 0, 0, 1<<63)
	}
	signed, err := c.cfg.Audit.Checkpoint()
	if err != nil {
		return 0, fmt.Errorf("making a checkpoint: %w", err)
	}
	head, err := audit.PeekCheckpoint(signed)
	return head.Size, err
}

// needed reads a query parameter that has no default.
func needed(r *http.Request, name string, least uint64) (uint64, error) {
	if r.URL.Query().Get(name) == "" {
		return 0, &inputError{name, name + " is not given", "add ?" + name + "=NUMBER to the address"}
	}
	return queryUint(r, name, 0, least, 1<<63)
}

func (c *console) apiInclusion(w http.ResponseWriter, r *http.Request, _ principal) error {
	index, err := needed(r, "index", 0)
	if err != nil {
		return err
	}
	size, err := c.sizeOr(r, "size")
	if err != nil {
		return err
	}
	leaf, hashes, err := c.cfg.Store.InclusionProof(index, size)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, InclusionProof{Index: index, Size: size, LeafHash: leaf[:], Hashes: orEmpty(hashes)})
	return nil
}

func (c *console) apiConsistency(w http.ResponseWriter, r *http.Request, _ principal) error {
	from, err := needed(r, "from", 1)
	if err != nil {
		return err
	}
	to, err := c.sizeOr(r, "to")
	if err != nil {
		return err
	}
	hashes, err := c.cfg.Store.ConsistencyProof(from, to)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, ConsistencyProof{From: from, To: to, Hashes: orEmpty(hashes)})
	return nil
}

func orEmpty(hashes [][]byte) [][]byte {
	if hashes == nil {
		return [][]byte{}
	}
	return hashes
}

// apiAuditExport streams the log up to a checkpoint. What it has begun it cannot refuse any more: it
// breaks the connection off, and the export has no end.
func (c *console) apiAuditExport(w http.ResponseWriter, r *http.Request, _ principal) error {
	select {
	case c.exports <- struct{}{}:
		defer func() { <-c.exports }()
	default:
		return errExports
	}
	removed, release := c.cfg.Store.HoldRecords()
	defer release()
	var least uint64
	if removed.Before > 0 {
		least = removed.Record + 1 // the record that tells of the removal
	}
	signed, head, err := c.checkpointOver(r.Context(), least)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaNDJSON)
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="signet-audit-%d.ndjson"`, head.Size))
	if r.Method == http.MethodHead {
		return nil
	}
	e := &export{store: c.cfg.Store, first: removed.Before, size: head.Size, origin: head.Origin, client: http.NewResponseController(w), w: bufio.NewWriterSize(w, 64<<10)}
	if err = e.write(signed); err != nil {
		c.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "audit export broken off", slog.String("id", w.Header().Get("X-Request-Id")), slog.Any("err", err))
		panic(http.ErrAbortHandler)
	}
	return nil
}

// checkpointOver is a checkpoint over least records or more. One signed within the last second may not
// cover as many yet, then the next does.
func (c *console) checkpointOver(ctx context.Context, least uint64) ([]byte, audit.Checkpoint, error) {
	for {
		signed, err := c.cfg.Audit.Checkpoint()
		if err != nil {
			return nil, audit.Checkpoint{}, fmt.Errorf("making a checkpoint: %w", err)
		}
		head, err := audit.PeekCheckpoint(signed)
		if err != nil || head.Size >= least {
			return signed, head, err
		}
		select {
		case <-ctx.Done():
			return nil, audit.Checkpoint{}, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// export is one on its way to a client.
type export struct {
	store  *store.Store
	first  uint64 // record; those before were removed
	size   uint64 // records
	origin string // of the checkpoint
	client *http.ResponseController
	w      *bufio.Writer
}

// write sends the lines that package audit describes. The log below the checkpoint never changes on an
// honest disk, so it is read in pages, and the box goes on writing meanwhile. What the disk has is sent
// as it is: whoever verifies it has to see it.
func (e *export) write(signed []byte) error {
	if e.first > 0 {
		e.w.Write(audit.RemovedLine(e.first))
	}
	err := e.pages(e.first, func(from, to uint64) error {
		leaves, err := e.store.Leaves(from, to)
		for _, l := range leaves {
			e.w.Write(l)
			e.w.WriteByte('\n')
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := e.earlier(); err != nil {
		return err
	}
	err = e.pages(0, func(from, to uint64) error {
		hashes, err := e.store.LeafHashes(from, to)
		for row := range slices.Chunk(hashes, audit.HashesPerLine) {
			e.w.Write(audit.HashesLine(row))
		}
		return err
	})
	if err != nil {
		return err
	}
	e.w.Write(audit.CheckpointLine(signed))
	return e.flush()
}

// pages calls f for the records of the export from first on, exportPage of them at a time.
func (e *export) pages(first uint64, f func(from, to uint64) error) error {
	for from := first; from < e.size; from += exportPage {
		if err := f(from, min(from+exportPage, e.size)); err != nil {
			return err
		}
		if err := e.flush(); err != nil {
			return err
		}
	}
	return nil
}

// earlier sends the checkpoints over fewer records.
func (e *export) earlier() error {
	for after := uint64(0); ; {
		page, last, err := e.store.Checkpoints(after, exportPage)
		if err != nil {
			return err
		}
		for _, one := range page {
			head, err := audit.PeekCheckpoint(one.Note)
			if err != nil {
				return err
			}
			if head.Size >= e.size {
				return e.flush()
			}
			if head.Origin != e.origin {
				continue // another key's, which no longer exists
			}
			e.w.Write(audit.EarlierLine(one.Note))
		}
		if err := e.flush(); err != nil || len(page) < exportPage {
			return err
		}
		after = last
	}
}

// flush gives the client time for what was written; the first error of a write comes out here.
func (e *export) flush() error {
	if err := e.client.SetWriteDeadline(time.Now().Add(exportPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return e.w.Flush()
}
