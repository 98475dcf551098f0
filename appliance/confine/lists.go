package confine

import "golang.org/x/sys/unix"

// What is on no list, and that on purpose: execve, ptrace and process_vm_*, kill, mounts and
// namespaces, keyrings, bpf, io_uring, userfaultfd, perf, memfd, ioctl, truncate and every change of
// owner, mode or attribute.

// goRuntime is what a Go program without files or sockets of its own uses.
func goRuntime() List {
	return List{
		calls: []uint32{
			// Scheduler, timers and the network poller; pread64 follows the CPU limit of a cgroup.
			unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_PREAD64,
			unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_RESTART_SYSCALL,
			// Clocks, where the kernel's page for them does not serve.
			unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
			// Open descriptors; fcntl duplicates them and makes them non-blocking.
			unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_FCNTL,
			unix.SYS_GETRANDOM,
			// Heap and stacks; what makes memory is a rule.
			unix.SYS_MUNMAP, unix.SYS_MADVISE,
			// Signals, and preemption by them. Each process is alone in its PID namespace: there is nobody
			// else to signal.
			unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
			unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
			unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		},
		rules: []rule{
			// No code comes in by memory.
			{unix.SYS_MMAP, []arg{without(2, unix.PROT_EXEC)}},
			{unix.SYS_MPROTECT, []arg{without(2, unix.PROT_EXEC)}},
			// Threads, and neither processes nor namespaces.
			{unix.SYS_CLONE, []arg{{0, unix.CLONE_THREAD | namespaces, unix.CLONE_THREAD}}},
			// Names for mappings.
			{unix.SYS_PRCTL, []arg{is(0, unix.PR_SET_VMA), is(1, unix.PR_SET_VMA_ANON_NAME)}},
		},
	}
}

const namespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS |
	unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS

// inheritedSocket makes a Go listener or connection of an inherited descriptor.
func inheritedSocket() List {
	return List{
		calls: []uint32{unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME},
		rules: []rule{{unix.SYS_GETSOCKOPT, []arg{is(1, unix.SOL_SOCKET), is(2, unix.SO_TYPE)}}},
	}
}

// interfaceAddresses lists network interfaces and their addresses (rtnetlink(7)). Without
// capabilities that socket only reads.
func interfaceAddresses() List {
	return List{
		calls: []uint32{unix.SYS_BIND, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_GETSOCKNAME},
		rules: []rule{{unix.SYS_SOCKET, []arg{is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)}}},
	}
}

// outgoingConnections opens TCP connections to anywhere, by name: Go's resolver asks over UDP and TCP.
// Without listen(2) none of them takes a connection.
func outgoingConnections() List {
	l := List{
		calls: []uint32{unix.SYS_CONNECT},
		rules: []rule{
			// Whether a connection came about, and what Go sets on every socket of these kinds.
			{unix.SYS_GETSOCKOPT, []arg{is(1, unix.SOL_SOCKET), is(2, unix.SO_ERROR)}},
			// Whether the peer acknowledged what was sent: the audit log's stream.
			{unix.SYS_GETSOCKOPT, []arg{is(1, unix.IPPROTO_TCP), is(2, unix.TCP_INFO)}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.IPPROTO_IPV6), is(2, unix.IPV6_V6ONLY)}},
		},
	}
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			l.rules = append(l.rules, rule{unix.SYS_SOCKET, []arg{is(0, family), {1, 0xf, kind}, is(2, 0)}})
		}
	}
	return l
}

// Signetd is the enrollment service: HTTP on inherited TCP listeners, the key holder's inherited
// socket, a Pebble store below its state directory, and words to its supervisor. Only with outgoing,
// which a site asks for by naming a service elsewhere, does it open connections; else TCP and UDP sockets
// come by accept alone.
func Signetd(outgoing bool) List {
	service := List{
		calls: []uint32{
			unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN,
			// Files of the store and of the site; Landlock says where.
			unix.SYS_OPENAT, sysNewfstatat, unix.SYS_GETDENTS64, unix.SYS_LSEEK, unix.SYS_PWRITE64, unix.SYS_WRITEV,
			unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT,
			unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_FALLOCATE, unix.SYS_FADVISE64,
			unix.SYS_FTRUNCATE, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_UNAME,
			// sd_notify
			unix.SYS_CONNECT,
		},
		rules: []rule{
			// sd_notify: datagrams to a path, with the option Go sets on every datagram socket.
			{unix.SYS_SOCKET, []arg{is(0, unix.AF_UNIX), {1, 0xf, unix.SOCK_DGRAM}}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.SOL_SOCKET), is(2, unix.SO_BROADCAST)}},
			// What Go sets on every accepted connection.
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.SOL_SOCKET), is(2, unix.SO_KEEPALIVE)}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.IPPROTO_TCP), is(2, unix.TCP_NODELAY)}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.IPPROTO_TCP), is(2, unix.TCP_KEEPIDLE)}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.IPPROTO_TCP), is(2, unix.TCP_KEEPINTVL)}},
			{unix.SYS_SETSOCKOPT, []arg{is(1, unix.IPPROTO_TCP), is(2, unix.TCP_KEEPCNT)}},
		},
	}
	if outgoing {
		service = service.and(outgoingConnections())
	}
	return goRuntime().and(inheritedSocket()).and(interfaceAddresses()).and(service)
}

// KeyHolder is the key holder: clients on its inherited listener, and the TPM by read and write on an
// inherited descriptor. It opens nothing.
func KeyHolder() List {
	return goRuntime().and(inheritedSocket()).and(List{calls: []uint32{unix.SYS_ACCEPT4}})
}

// DHCP is the DHCP helper: its interface by name, and UDP packets by a packet socket, which works on an
// interface without an address (packet(7)). It opens no file.
func DHCP() List {
	return goRuntime().and(interfaceAddresses()).and(List{
		rules: []rule{
			{unix.SYS_SOCKET, []arg{is(0, unix.AF_PACKET), {1, 0xf, unix.SOCK_DGRAM}}},
			{unix.SYS_GETSOCKOPT, []arg{is(1, unix.SOL_SOCKET), is(2, unix.SO_TYPE)}},
		},
	})
}
