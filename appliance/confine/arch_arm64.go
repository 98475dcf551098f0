package confine

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0 // there is no such thing

	sysNewfstatat = unix.SYS_FSTATAT
)
