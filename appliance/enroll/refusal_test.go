package enroll

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
)

// total is how many refusals the log tells of, and in how many records.
func (b *box) total() (refusals, records int) {
	b.t.Helper()
	more := regexp.MustCompile(`: (\d+) more within a minute$`)
	for _, r := range b.log() {
		if r.Action != audit.SCEPRefused {
			continue
		}
		records++
		n := 1
		if m := more.FindStringSubmatch(r.Reason); m != nil {
			var err error
			n, err = strconv.Atoi(m[1])
			must(b.t, err)
		}
		refusals += n
	}
	return refusals, records
}

func (b *box) wantTotal(refusals, records int) {
	b.t.Helper()
	if gotRefusals, gotRecords := b.total(); gotRefusals != refusals || gotRecords != records {
		b.t.Errorf("the log tells of %d refusals in %d records, want %d in %d", gotRefusals, gotRecords, refusals, records)
	}
}

// One sender who repeats a mistake costs two records a minute.
func TestRefusalsAreCounted(t *testing.T) {
	b := newBox(t)
	r := Refusal{Protocol: ProtocolSCEP, Profile: "corp", Source: source, TransactionID: "T", Identity: "printer-7", Reason: "not a CMS message"}
	b.engine.Refused(r)
	b.wantTotal(1, 1)
	if rec := b.log()[0]; rec.Reason != r.Reason || rec.Transaction != "T" || rec.Identity != "printer-7" || rec.Source != "192.0.2.1" || rec.Actor != audit.ActorDevice {
		t.Errorf("record %+v", rec)
	}
	for range 999 {
		b.engine.Refused(r)
	}
	b.wantTotal(1, 1)
	must(t, b.engine.writeCounted())
	b.wantTotal(1000, 2)
	if rec := b.log()[1]; rec.Transaction != "" || rec.Identity != "" || rec.Source != "192.0.2.1" || rec.Profile != "corp" {
		t.Errorf("record of many %+v", rec)
	}
	must(t, b.engine.writeCounted())
	b.wantTotal(1000, 2)
	b.engine.Refused(r) // the next minute's first
	b.wantTotal(1001, 3)
	b.engine.Refused(r)
	b.closeCounted(1002, 4)
}

// closeCounted closes the box and checks that the refusals counted so far were written.
func (b *box) closeCounted(refusals, records int) {
	b.t.Helper()
	must(b.t, b.engine.Close())
	b.wantTotal(refusals, records)
	b.check()
	must(b.t, b.store.Close())
}

// Any number of senders cost a fixed number of records a minute and fixed memory, and none of their
// refusals goes uncounted.
func TestRefusalsAreBounded(t *testing.T) {
	b := newBox(t)
	const senders, each = 2000, 2
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := w; i < senders; i += 4 {
				for range each {
					b.engine.Refused(Refusal{
						Protocol: ProtocolSCEP, Source: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Reason: "not a CMS message",
					})
				}
			}
		})
	}
	all.Wait()
	if _, records := b.total(); records != writtenMax {
		t.Errorf("%d records at once, want %d", records, writtenMax)
	}
	if n := len(b.engine.refusals.counts); n > countedMax {
		t.Errorf("%d counters, want at most %d", n, countedMax)
	}
	must(t, b.engine.writeCounted())
	b.wantTotal(senders*each, writtenMax+countedMax+1)
	b.close()
}

func TestRefusalTextIsBounded(t *testing.T) {
	b := newBox(t)
	long := fmt.Sprintf("%0100000d", 0)
	b.engine.Refused(Refusal{Protocol: long, Profile: long, TransactionID: long, Identity: long, Reason: long})
	b.engine.Refused(Refusal{Protocol: long, Profile: long, TransactionID: long, Identity: long, Reason: long})
	for k := range b.engine.refusals.counts {
		if n := len(k.protocol) + len(k.profile) + len(k.reason); n > 1000 {
			t.Errorf("a counter keeps %d bytes of text", n)
		}
	}
	if rec := b.log()[0]; len(audit.Leaf(rec)) > audit.MaxLeaf || rec.Source != "" {
		t.Errorf("record %+v", rec)
	}
	b.close()
}

// What cannot be written at once is counted, and written when there is room again.
func TestRefusalOnFullDisk(t *testing.T) {
	b := newBox(t)
	b.fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1, TotalBytes: 1 << 40})
	b.engine.Refused(Refusal{Protocol: ProtocolSCEP, Source: source, Reason: "not a CMS message"})
	b.wantTotal(0, 0)
	b.refused(newDevice(t).request(printer), ErrUnavailable)
	if b.signer.signed() != 0 {
		t.Error("something was signed without a durable intent")
	}
	b.fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 40, TotalBytes: 1 << 40})
	must(t, b.engine.writeCounted())
	b.wantTotal(1, 1)
	b.issue(newDevice(t).request(printer))
	b.close()
}

// An IPv6 host that changes its address in its network is one source, so it cannot use up the counters
// of all others.
func TestRefusalsOfOneNetwork(t *testing.T) {
	rs := newRefusals()
	for i := range 2 * countedMax {
		rs.add(Refusal{Reason: "r", Source: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)})})
	}
	rs.count(Refusal{Reason: "r", Source: source})
	got := rs.drain()
	if len(got) != 2 || got[0].n+got[1].n != 2*countedMax {
		t.Errorf("counted %+v", got)
	}
}

// Whoever has a good proof and is refused all the same costs no more than its share of the log either.
func TestKnownSendersAreBounded(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(pkix.Name{CommonName: "box.example.com"})
	refuse := func(n int) {
		for range n {
			var policy *pki.PolicyError
			if _, err := b.enroll(r); !errors.As(err, &policy) {
				t.Fatalf("error %v", err)
			}
		}
	}
	refuse(knownPerSource)
	b.wantTotal(knownPerSource, knownPerSource)
	refuse(100)
	b.wantTotal(knownPerSource+1, knownPerSource+1)
	r.Source = netip.MustParseAddr("192.0.2.2")
	refuse(1)
	b.wantTotal(knownPerSource+2, knownPerSource+2)
	must(t, b.engine.writeCounted())
	b.wantTotal(knownPerSource+101, knownPerSource+3)
	if last := b.log()[knownPerSource+2]; last.Reason != "refused although the proof was good: 99 more within a minute" {
		t.Errorf("record of many %+v", last)
	}
	r.Source = source
	refuse(1)
	b.wantTotal(knownPerSource+102, knownPerSource+4)
	b.close()
}
