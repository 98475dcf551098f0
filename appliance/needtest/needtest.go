// Package needtest skips tests where this machine lacks what they need, and fails them where CI is set.
package needtest

import (
	"os"
	"os/exec"
	"testing"
)

// Program returns the path of a program that a Debian package has.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name+" is missing: apt-get install "+debianPackage)
	}
	return path
}

// Missing ends a test that cannot run here.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
