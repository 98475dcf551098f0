package confine

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// List says which system calls a process may make. Anything else answers EPERM, but clone3 and x32
// calls ENOSYS: callers fall back from them.
type List struct {
	calls []uint32 // allowed whatever their arguments
	rules []rule   // several for one call are alternatives
}

// rule allows a call where all of args hold.
type rule struct {
	call uint32
	args []arg
}

// arg holds where an argument has value in the bits of mask. Only the lower 32 bits are looked at: the
// kernel takes the arguments the lists name as int, or refuses flags above.
type arg struct {
	index       uint32 // 0 to 5
	mask, value uint32
}

// is is an argument with exactly this value.
func is(index, value uint32) arg { return arg{index, 0xffffffff, value} }

// without is an argument with none of these bits.
func without(index, bits uint32) arg { return arg{index, bits, 0} }

// and is a list with what both allow.
func (l List) and(m List) List {
	return List{slices.Concat(l.calls, m.calls), slices.Concat(l.rules, m.rules)}
}

// Offsets in struct seccomp_data (seccomp(2)); each argument has 8 bytes, the lower half first on a
// little-endian machine, which all of ours are.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// program is the filter of the list.
func (l List) program() []bpf.Instruction {
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	refuse := func(errno unix.Errno) bpf.Instruction {
		return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	loadCall := bpf.LoadAbsolute{Off: offsetCall, Size: 4}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		refuse(unix.EPERM), // numbers mean other calls there
		loadCall,
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: x32Bit, SkipTrue: 1},
		refuse(unix.ENOSYS),
		// Its flags are in memory, where a filter cannot look.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		refuse(unix.ENOSYS),
	}
	for _, call := range l.calls {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1}, allow)
	}
	for _, r := range l.rules {
		size := 3 * len(r.args)
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.call, SkipTrue: uint8(size + 2)})
		for i, a := range r.args {
			p = append(p,
				bpf.LoadAbsolute{Off: offsetArgs + 8*a.index, Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: a.mask},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: a.value, SkipTrue: uint8(size - 3*i - 2)})
		}
		p = append(p, allow, loadCall)
	}
	return append(p, refuse(unix.EPERM))
}

// Seccomp leaves every thread of the process the calls of l, for good. The process must have
// no_new_privs. The kernel's log gets a line (audit type 1326) for each call refused.
func Seccomp(l List) error {
	raw, err := bpf.Assemble(l.program())
	if err != nil {
		return fmt.Errorf("assembling the list of system calls: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_LOG, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("confining to a list of system calls: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("confining to a list of system calls: thread %d cannot be", thread)
	}
	return nil
}
