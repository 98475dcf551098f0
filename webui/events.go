package webui

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"signet.internal/appliance/audit"
)

// Topics of events: what of the console may look different now.
const (
	topicAudit        = "audit"
	topicPending      = "pending"
	topicCertificates = "certificates"
	topicAuthorities  = "authorities"
	topicProfiles     = "profiles"
	topicPeople       = "people"
	topicConditions   = "conditions"
	topicMinute       = "minute" // nothing happened, but clocks and gauges went on
)

func allTopics() []string {
	return []string{topicAudit, topicPending, topicCertificates, topicAuthorities, topicProfiles, topicPeople, topicConditions, topicMinute}
}

const (
	mediaEvents = "text/event-stream"

	// Bounds of streams. A browser has one for each of its windows that can be seen.
	maxStreams        = 64
	maxStreamsEach    = 8
	streamPatience    = 10 * time.Second // for a client to take one event
	heartbeatInterval = 15 * time.Second // and how soon the end of a session ends its streams
	feedInterval      = time.Second      // how often the log is looked at while somebody listens
	conditionsEvery   = 5                // of those looks have the conditions looked at too

	// recordsPerLook is how many new records are told apart; where there are more, everything changed.
	recordsPerLook = 200
	// justBefore is how long ago something may have happened for a browser to miss it between its page and
	// its stream.
	justBefore = 5 * time.Second
)

// eventsRoute streams what changes.
func eventsRoute() route {
	return route{http.MethodGet, "/events", auditor, &operation{
		id: "events", summary: "What changes on the box, as it happens (server-sent events): \"change\" names topics, \"end\" why there is no more. Send Accept: text/event-stream",
		responses: []response{{http.StatusOK, "events until the session ends, the box stops or the client goes", mediaEvents, nil}},
		refusals:  []int{http.StatusUnprocessableEntity, http.StatusServiceUnavailable},
	}, (*console).eventStream}
}

// feed tells streams what changed. While there is no stream nothing looks.
type feed struct {
	c     *console
	every time.Duration

	mu      sync.Mutex
	streams map[*stream]bool
	looking bool
	size    uint64 // of the log at the last look
	looks   int
	told    [sha256.Size]byte // conditions at the last look at them
	minute  time.Time         // of the last look
}

// stream is one client's.
type stream struct {
	user string
	wake chan struct{}

	mu     sync.Mutex
	topics map[string]bool // not sent yet
	size   uint64          // of the log they are about
}

func newFeed(c *console) *feed {
	return &feed{c: c, every: feedInterval, streams: map[*stream]bool{}}
}

// open begins a stream. seen is the length of the log its client knows, "" for a client that comes for the
// first time.
func (f *feed) open(user, seen string) (*stream, error) {
	size, _, err := f.c.cfg.Store.LogHead()
	if err != nil {
		return nil, err
	}
	missed, err := f.missed(seen, size)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	own := 0
	for s := range f.streams {
		if s.user == user {
			own++
		}
	}
	if own >= maxStreamsEach || len(f.streams) >= maxStreams {
		return nil, errStreams
	}
	s := &stream{user: user, wake: make(chan struct{}, 1), topics: map[string]bool{}}
	f.streams[s] = true
	s.add(missed, size)
	if !f.looking {
		f.looking, f.looks, f.size, f.told, f.minute = true, 0, size, f.conditions(), f.c.cfg.Now().Truncate(time.Minute)
		go f.look()
	}
	return s, nil
}

// missed is what changed since a client saw a log of some length, or within justBefore.
func (f *feed) missed(seen string, size uint64) ([]string, error) {
	if seen != "" {
		if known, err := strconv.ParseUint(seen, 10, 64); err == nil && known == size {
			return nil, nil
		}
		return allTopics(), nil
	}
	page, err := f.c.cfg.Store.Records(0, recordsPerLook)
	if err != nil {
		return nil, err
	}
	since := f.c.cfg.Now().Add(-justBefore)
	page = slices.DeleteFunc(page, func(r audit.Record) bool { return r.Time.Before(since) })
	return topicsOf(page), nil
}

func (f *feed) close(s *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.streams, s)
}

// look tells the streams what is new, until there are none.
func (f *feed) look() {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for range tick.C {
		f.mu.Lock()
		if len(f.streams) == 0 {
			f.looking = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		topics, size := f.changed()
		if len(topics) == 0 {
			continue
		}
		f.mu.Lock()
		for s := range f.streams {
			s.add(topics, size)
		}
		f.mu.Unlock()
	}
}

// changed compares what is with the last look. Only look calls it; open sets what it compares with before
// there is a look. A store that cannot be read has nothing new: whoever loads a page hears of it.
func (f *feed) changed() (topics []string, size uint64) {
	size, _, err := f.c.cfg.Store.LogHead()
	if err != nil {
		return nil, f.size
	}
	switch fresh := size - f.size; {
	case fresh > recordsPerLook:
		topics = allTopics()
	case fresh > 0:
		page, err := f.c.cfg.Store.Records(size, int(fresh))
		if err != nil {
			return nil, f.size
		}
		topics = topicsOf(page)
	}
	f.size = size
	if f.looks++; f.looks%conditionsEvery == 0 || len(topics) > 0 {
		if told := f.conditions(); told != f.told {
			f.told, topics = told, append(topics, topicConditions)
		}
	}
	if minute := f.c.cfg.Now().Truncate(time.Minute); !minute.Equal(f.minute) {
		f.minute, topics = minute, append(topics, topicMinute)
	}
	return topics, size
}

// conditions names what needs a person.
func (f *feed) conditions() [sha256.Size]byte {
	site := f.c.cfg.Site()
	return sha256.Sum256(fmt.Appendf(nil, "%v %q", site.Stopped, site.Conditions))
}

// topicsOf is what records are about.
func topicsOf(records []audit.Record) []string {
	var topics []string
	for _, r := range records {
		topics = append(topics, topicAudit)
		switch r.Action {
		case audit.RequestHeld, audit.RequestApproved, audit.RequestDenied, audit.RequestExpired:
			topics = append(topics, topicPending)
		case audit.CertificateRevoked, audit.CertificateReleased, audit.CertificateDelivered, audit.CRLSigned, audit.TransactionLost:
			topics = append(topics, topicCertificates)
		case audit.AuthorityPrepared, audit.AuthorityInstalled, audit.AuthorityActivated, audit.AuthorityCancelled, audit.AuthorityRetired,
			audit.RARenewed, audit.RARetired, audit.ResponderRenewed, audit.TLSRenewed, audit.TLSInstalled:
			topics = append(topics, topicAuthorities)
		case audit.ProfileSwitched, audit.TrustReplaced, audit.SecretEntered:
			topics = append(topics, topicProfiles)
		default:
			if r.Protocol != "" && r.Outcome != audit.OutcomeBegun {
				topics = append(topics, topicCertificates)
			} else if r.Protocol == "" {
				topics = append(topics, topicPeople)
			}
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// add has topics sent with the next event. However slow a client is, what waits for it is no more than the
// names of all topics.
func (s *stream) add(topics []string, size uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = size
	for _, t := range topics {
		s.topics[t] = true
	}
	if len(topics) > 0 {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// take returns what is to be sent, sorted.
func (s *stream) take() (topics []string, size uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.topics {
		topics = append(topics, t)
	}
	clear(s.topics)
	slices.Sort(topics)
	return topics, s.size
}

// eventStream serves one client. The server's timeouts are those of one request and its answer: here each
// event has its own.
func (c *console) eventStream(w http.ResponseWriter, r *http.Request, who principal) error {
	if !strings.Contains(r.Header.Get("Accept"), mediaEvents) {
		return &inputError{"Accept", "this address answers with a stream of events only", "send Accept: " + mediaEvents}
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", mediaEvents)
		return nil
	}
	s, err := c.feed.open(who.user, r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	defer c.feed.close(s)
	client := http.NewResponseController(w)
	if err := client.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("taking the deadline off a stream: %w", err)
	}
	w.Header().Set("Content-Type", mediaEvents)
	w.Header().Set("Connection", "close") // its deadlines are not those of another request
	send := func(text string) bool {
		if err := client.SetWriteDeadline(time.Now().Add(streamPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return false
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return client.Flush() == nil
	}
	if !send("retry: 3000\n\n") {
		return nil
	}
	heartbeat := time.NewTicker(heartbeatInterval)
	defer heartbeat.Stop()
	for {
		text := ": still here\n\n"
		select {
		case <-r.Context().Done():
			return nil
		case <-c.cfg.Stopping:
			send("event: end\ndata: stopping\n\n")
			return nil
		case <-heartbeat.C:
		case <-s.wake:
			topics, size := s.take()
			text = fmt.Sprintf("id: %d\nevent: change\ndata: %s\n\n", size, strings.Join(topics, " "))
		}
		if !c.stays(r, who) {
			send("event: end\ndata: signed-out\n\n")
			return nil
		}
		if !send(text) {
			return nil
		}
	}
}

// stays tells whether a stream's credential is still good, for the same person. A page that is only looked at
// keeps no session alive.
func (c *console) stays(r *http.Request, who principal) bool {
	now, err := c.authenticate(r)
	return err == nil && now.user == who.user && now.role >= auditor
}
