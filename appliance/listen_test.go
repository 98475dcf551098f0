package appliance

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/netutil"
)

// TestConnectionsOfOneSource: a source that has its connections open gets no more and takes none from
// others, and what it closes it may open again.
func TestConnectionsOfOneSource(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &perSource{Listener: netutil.LimitListener(inner, 3), most: 2, open: map[netip.Prefix]int{}}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Write([]byte("hello"))
				io.Copy(io.Discard, c)
			}()
		}
	}()
	// dial reports whether the listener talks to a connection from that address.
	dial := func(from string) (net.Conn, bool) {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(2 * time.Minute))
		_, err = io.ReadFull(c, make([]byte, 5))
		return c, err == nil
	}
	first, ok := dial("127.0.0.1")
	if _, again := dial("127.0.0.1"); !ok || !again {
		t.Fatal("a source does not get what it may have")
	}
	for range 5 {
		if _, ok := dial("127.0.0.1"); ok {
			t.Fatal("a source gets more than it may have")
		}
	}
	other, ok := dial("127.0.0.2")
	if !ok {
		t.Error("another source gets nothing")
	}
	first.Close()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if _, ok := dial("127.0.0.1"); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a closed connection counts on")
		}
	}
	other.Close()
}
