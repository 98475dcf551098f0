package challenge

import (
	"testing"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

func BenchmarkSignedVerify(b *testing.B) {
	for _, kind := range []string{"rsa", "p256"} {
		b.Run(kind, func(b *testing.B) {
			c := newConnector(b, kind)
			signed := newSigned(b, newStore(b), c, nil)
			r := Request{Challenge: c.sign(b, goodClaims()), CSR: csrFor(b, named("laptop-1")), Now: epoch}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := signed.Verify(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOneTimeVerify(b *testing.B) {
	s := newStore(b)
	o := newOneTime(b, s, "iot")
	r := Request{Challenge: mint(b, s, o, "printer-17"), CSR: csrFor(b, named("printer-17")), Now: epoch}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := o.Verify(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	s := newStore(b)
	o := newOneTime(b, s, "iot")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, _, err := o.Mint("printer-17", nil, 0, epoch, func(g store.Guard) error { return s.Mint(g, record(audit.ChallengeMinted)) })
			if err != nil {
				b.Error(err)
			}
		}
	})
}
