package confine

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdict runs a list's filter outside the kernel. The machine of package bpf reads packets, which are
// big-endian; the words are at the same places.
func verdict(t *testing.T, l List, arch, call uint32, args ...uint32) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(l.program())
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetCall:], call)
	binary.BigEndian.PutUint32(data[offsetArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offsetArgs+8*i:], a)
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func TestProgram(t *testing.T) {
	const (
		allow   = unix.SECCOMP_RET_ALLOW
		eperm   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		enosys  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		foreign = unix.AUDIT_ARCH_I386
	)
	l := List{
		calls: []uint32{10, 20},
		rules: []rule{
			{30, []arg{is(0, 1), {2, 0xf, 2}}},
			{30, []arg{is(0, 7)}},
			{40, []arg{without(5, 4)}},
		},
	}
	for _, c := range []struct {
		what string
		arch uint32
		call uint32
		args []uint32
		want uint32
	}{
		{"listed", auditArch, 10, nil, allow},
		{"listed last", auditArch, 20, nil, allow},
		{"not listed", auditArch, 11, nil, eperm},
		{"another machine's call of that number", foreign, 10, nil, eperm},
		{"clone3", auditArch, unix.SYS_CLONE3, nil, enosys},
		{"first rule", auditArch, 30, []uint32{1, 9, 0xf2}, allow},
		{"first rule but for one bit of the last argument", auditArch, 30, []uint32{1, 9, 0xf3}, eperm},
		{"the second rule is an alternative", auditArch, 30, []uint32{7, 9, 0xf3}, allow},
		{"neither rule", auditArch, 30, []uint32{2, 9, 0xf2}, eperm},
		{"none of the bits", auditArch, 40, []uint32{0, 0, 0, 0, 0, 3}, allow},
		{"one of the bits", auditArch, 40, []uint32{0, 0, 0, 0, 0, 5}, eperm},
		{"an argument is no call", auditArch, 0, []uint32{10}, eperm},
	} {
		if got := verdict(t, l, c.arch, c.call, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
	if x32Bit != 0 {
		if got := verdict(t, l, auditArch, x32Bit|10); got != enosys {
			t.Errorf("x32: %#x", got)
		}
	}
}
