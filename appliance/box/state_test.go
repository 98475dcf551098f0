package box

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"signet.internal/image/format"
)

func TestDecideState(t *testing.T) {
	type decision int
	const (
		keep decision = iota
		makeNew
		refuse
	)
	for _, c := range []struct {
		name                     string
		provisioned, initialised bool
		content                  stateContent
		want                     decision
	}{
		{"first boot", false, false, stateBlank, makeNew},
		{"first boot over an empty filesystem", false, false, stateEmpty, makeNew},
		{"records without keys", false, false, stateRecords, refuse},
		{"unreadable records without keys", false, false, stateDamaged, refuse},
		{"cut after the keys", true, false, stateBlank, makeNew},
		{"cut after formatting", true, false, stateEmpty, makeNew},
		{"cut after the service wrote", true, false, stateRecords, keep},
		{"cut while formatting", true, false, stateDamaged, makeNew},
		{"every later boot", true, true, stateRecords, keep},
		{"records gone", true, true, stateBlank, refuse},
		{"records emptied", true, true, stateEmpty, refuse},
		{"records damaged", true, true, stateDamaged, refuse},
	} {
		t.Run(c.name, func(t *testing.T) {
			formatIt, err := decideState(c.provisioned, c.initialised, c.content)
			got := keep
			switch {
			case err != nil:
				got = refuse
				checkMend(t, err)
			case formatIt:
				got = makeNew
			}
			if got != c.want {
				t.Errorf("got %d, want %d (%v)", got, c.want, err)
			}
		})
	}
}

// stateImage is a file with room for a filesystem.
func stateImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64*format.MiB); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFormatAndCheckState(t *testing.T) {
	needTool(t, "mke2fs")
	needTool(t, "e2fsck")
	image := stateImage(t)
	if content, err := inspectState(image, t.TempDir(), checkFilesystem); err != nil || content != stateBlank {
		t.Fatalf("blank partition: %v, %v", content, err)
	}
	if err := FormatState(image); err != nil {
		t.Fatal(err)
	}
	if is, err := hasExt4(image); err != nil || !is {
		t.Fatalf("after formatting: %v, %v", is, err)
	}
	if err := checkFilesystem(image); err != nil {
		t.Fatalf("a new filesystem: %v", err)
	}
	out, err := exec.Command(needTool(t, "dumpe2fs"), "-h", image).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"metadata_csum", "64bit", "has_journal", "Block size:               4096"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("filesystem lacks %q:\n%s", want, out)
		}
	}

	damage(t, image)
	if err := checkFilesystem(image); !errors.Is(err, errDamaged) {
		t.Errorf("damaged filesystem: %v", err)
	}
	if content, err := inspectState(image, t.TempDir(), checkFilesystem); err != nil || content != stateDamaged {
		t.Errorf("damaged filesystem: %v, %v", content, err)
	}
}

// damage overwrites the group descriptors and inode tables, not the superblock's magic number.
func damage(t *testing.T, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := make([]byte, 8*format.MiB)
	rand.Read(noise)
	if _, err := f.WriteAt(noise, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 256), 1024+0x40); err != nil {
		t.Fatal(err)
	}
}

// Proves the mount options and what is found in a mounted STATE; needs a loop device.
func TestOpenStateOnLoopDevice(t *testing.T) {
	needTool(t, "mke2fs")
	losetup := needTool(t, "losetup")
	image := stateImage(t)
	if err := FormatState(image); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(losetup, "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("this machine has no loop devices for us: %s", out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command(losetup, "-d", device).Run() })
	dir, inspect := t.TempDir(), t.TempDir()
	content := func(want stateContent) {
		t.Helper()
		if got, err := inspectState(device, inspect, nil); err != nil || got != want {
			t.Errorf("STATE holds %v, %v; want %v", got, err, want)
		}
	}
	content(stateEmpty)
	if err := OpenState(device, dir); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	const flags = unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC
	if fs.Flags&flags != flags {
		t.Errorf("mounted with flags %x", fs.Flags)
	}
	if err := ownRecords(dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	content(stateEmpty) // signetd's directory alone is no record
	if err := OpenState(device, dir); err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(filepath.Join(dir, signetdDir, "000001.log"), []byte("x"), 0o600)
	if err := errors.Join(err, unix.Unmount(dir, 0)); err != nil {
		t.Fatal(err)
	}
	content(stateRecords)
}

// A disk that was in other hands must not make the box give its service anything but a directory.
func TestOwnRecordsFollowsNoLink(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	precious := t.TempDir()
	file := filepath.Join(precious, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, victim := range []string{precious, file} {
		state := t.TempDir()
		if err := os.Symlink(victim, filepath.Join(state, signetdDir)); err != nil {
			t.Fatal(err)
		}
		err := ownRecords(state)
		if err == nil {
			t.Error("a link was taken for the records' directory")
		} else {
			checkMend(t, err)
		}
		info, err := os.Stat(victim)
		if err != nil || ownerOf(info) != 0 {
			t.Errorf("%s belongs to user %d now (%v)", victim, ownerOf(info), err)
		}
	}
	state := t.TempDir()
	if err := errors.Join(os.Chmod(state, 0o777), os.Mkdir(filepath.Join(state, signetdDir), 0o777), ownRecords(state)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		owner uint32
		mode  os.FileMode
	}{state: {0, 0o755}, filepath.Join(state, signetdDir): {uidSignetd, 0o700}} {
		info, err := os.Stat(path)
		if err != nil || ownerOf(info) != want.owner || info.Mode().Perm() != want.mode {
			t.Errorf("%s: user %d, mode %v, %v", path, ownerOf(info), info.Mode(), err)
		}
	}
}
