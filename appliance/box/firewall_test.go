package box

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// The kernel takes the rules, in a network namespace of the test's own. That packets are dropped is
// shown by a booted box alone.
func TestFirewallRules(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root has network namespaces")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- errors.Join(raiseLoopback(), setFirewall(nil), checkRules(t), setFirewall([]uint16{80}), setFirewall([]uint16{8443, 9443}), checkRules(t, 8443, 9443))
	}()
	err := <-done
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		t.Skipf("this kernel has no packet filter for us: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkRules holds that the rules are those for ports and no others.
func checkRules(t *testing.T, ports ...uint16) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			t.Errorf("chain %s does not drop", c.Name)
		}
	}
	if len(chains) != 2 {
		t.Errorf("%d chains", len(chains))
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return err
		}
		if want := len(inputRules(ports)); c.Name == "input" && len(rules) != want {
			t.Errorf("%d rules for ports %v, want %d", len(rules), ports, want)
		}
	}
	if path, err := exec.LookPath("nft"); err == nil {
		out, err := exec.Command(path, "list", "ruleset").CombinedOutput()
		if err != nil {
			return err
		}
		for _, want := range []string{"ct state established,related accept", `iifname "lo" accept`, "icmp type echo-request accept", "icmpv6 type nd-neighbor-solicit accept"} {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("rules lack %q:\n%s", want, out)
			}
		}
		for _, port := range ports {
			if want := fmt.Sprintf("tcp dport %d accept", port); !bytes.Contains(out, []byte(want)) {
				t.Errorf("rules lack %q:\n%s", want, out)
			}
		}
	}
	return nil
}

func TestEveryInputRuleMatchesSomething(t *testing.T) {
	rules := inputRules([]uint16{80})
	if len(rules) != 8 {
		t.Errorf("%d rules", len(rules))
	}
	for i, r := range rules {
		if len(r) < 2 {
			t.Errorf("rule %d lets everything in", i)
		}
	}
	if !strings.HasPrefix(string(interfaceName("lo")), "lo\x00") {
		t.Error("interface name is not ended")
	}
}
