// Package confine takes from a running process of the box what it has no use for: files by Landlock,
// system calls by seccomp.
//
// A process confines itself when it has opened what only its start needs, and before it reads anything
// from outside. Landlock comes first: the seccomp lists allow none of its calls. Both need
// no_new_privs, cover every thread, and last until the process ends. What they refuse is an error to
// the caller and does not end the process.
//
// Whoever takes a confined process over keeps its open descriptors and the calls on its list, and can
// change nothing of either.
package confine

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	kernel "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Paths are the directories a process may open files below; all must exist.
type Paths struct {
	Read  []string // read files and list directories
	Write []string // the same, and write, make and remove files and directories
}

const (
	readAccess  = kernel.AccessFSReadFile | kernel.AccessFSReadDir
	writeAccess = readAccess | kernel.AccessFSWriteFile | kernel.AccessFSTruncate |
		kernel.AccessFSMakeReg | kernel.AccessFSMakeDir | kernel.AccessFSRemoveFile | kernel.AccessFSRemoveDir
)

// errNoLandlock names its mend: a kernel of a box always has Landlock.
var errNoLandlock = errors.New("the kernel has no Landlock; bake the image on a kernel with CONFIG_SECURITY_LANDLOCK and landlock among its LSMs")

// Landlock leaves the process p of the filesystem, and nothing of it to execute. It returns the
// kernel's Landlock ABI, which says how much that covers: from 1 on opening, making and removing files,
// from 3 on truncating by path and from 5 on ioctl on devices, which seccomp refuses anyway (truncate
// and ioctl are on no list). A kernel without Landlock is an error.
//
// stat, chmod, chown, utimes, xattrs and connecting to a unix socket are outside Landlock: users and modes, and
// the seccomp lists, decide on those.
func Landlock(p Paths) (abi int, err error) {
	abi, err = kernel.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return 0, errNoLandlock
	}
	var rules []landlock.Rule
	if len(p.Read) > 0 {
		rules = append(rules, landlock.PathAccess(readAccess, p.Read...))
	}
	if len(p.Write) > 0 {
		rules = append(rules, landlock.PathAccess(writeAccess, p.Write...))
	}
	// BestEffort leaves out rights that the kernel does not know yet, and with these rules no more.
	if err := landlock.V5.BestEffort().RestrictPaths(rules...); err != nil {
		return 0, fmt.Errorf("confining to files: %w", err)
	}
	return abi, nil
}
