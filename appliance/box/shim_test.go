package box

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// statusOf runs a process that prints its /proc/self/status in a sandbox and returns fields of it.
func statusOf(t *testing.T, s sandbox, names ...string) map[string]string {
	t.Helper()
	cmd := s.command(selfPath, "status")
	cmd.Env = []string{}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := map[string]string{}
	for line := range strings.SplitSeq(string(out), "\n") {
		name, value, _ := strings.Cut(line, ":")
		for _, want := range names {
			if name == want {
				got[name] = strings.Join(strings.Fields(value), " ")
			}
		}
	}
	return got
}

func TestShimGivesUpRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	const none, netRaw = "0000000000000000", "0000000000002000"
	for _, c := range []struct {
		name string
		box  sandbox
		want map[string]string
	}{
		{"service", sandbox{uid: uidSignetd}, map[string]string{
			"Uid": "902 902 902 902", "Gid": "902 902 902 902", "Groups": "", "NoNewPrivs": "1", "MaxTasks": "512 512",
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		}},
		{"dhcp", sandbox{uid: uidDHCP, netRaw: true}, map[string]string{
			"Uid": "903 903 903 903", "Gid": "903 903 903 903", "Groups": "", "NoNewPrivs": "1", "MaxTasks": "512 512",
			"CapInh": netRaw, "CapPrm": netRaw, "CapEff": netRaw, "CapBnd": netRaw, "CapAmb": netRaw,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			for name := range c.want {
				names = append(names, name)
			}
			if diff := cmp.Diff(c.want, statusOf(t, c.box, names...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What a service forked does not outlive it, and holds none of its sockets after its restart.
func TestNothingOutlivesAService(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := sandbox{uid: uidSignetd}.command(selfPath, "linger")
	cmd.Env, cmd.Stdout = []string{}, in
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := out.SetReadDeadline(time.Now().Add(lingers / 2)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(out) // ends when nobody has the pipe open any more
	if err != nil || string(said) != "left\n" {
		t.Errorf("%q, %v", said, err)
	}
}
