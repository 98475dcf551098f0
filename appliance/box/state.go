package box

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/image/format"
)

// Where STATE is mounted and what in it belongs to signetd.
const (
	stateMount = "/state"
	signetdDir = "signetd"
)

// stateContent is what the STATE partition holds.
type stateContent int

const (
	stateBlank   stateContent = iota // no ext4 filesystem
	stateEmpty                       // a whole filesystem without signetd's records
	stateRecords                     // a whole filesystem with signetd's records
	stateDamaged                     // an ext4 filesystem that e2fsck cannot repair or Linux cannot mount
)

// decideState says whether STATE is to be formatted, and refuses where that could destroy what
// somebody still needs. provisioned: the keys were there before this boot. initialised: signetd was
// ready in an earlier boot, so certificates may be out there.
//
// A first boot cut short after the keys were made comes back as provisioned and not initialised,
// and goes on where it was; records signetd wrote by then may tell of signatures, so they stay.
func decideState(provisioned, initialised bool, content stateContent) (formatIt bool, err error) {
	switch {
	case !provisioned && (content == stateBlank || content == stateEmpty):
		return true, nil
	case !provisioned:
		return false, &Problem{
			What: "the disk holds the records of a box whose keys are gone from the disk and the TPM",
			Mend: "put the disk back into its own machine; to give those records up, flash the image again",
		}
	case content == stateRecords:
		return false, nil
	case !initialised:
		return true, nil
	case content == stateDamaged:
		return false, &Problem{
			What: "the filesystem with the box's records is damaged beyond automatic repair",
			Mend: "copy the disk, run e2fsck on the copy of STATE on another machine, and put the repaired disk back",
		}
	default:
		return false, &Problem{
			What: "the box's keys are here but its records are not: the STATE partition is empty",
			Mend: "put the box's own disk back; to start over, clear the TPM in the firmware setup and flash the image again",
		}
	}
}

// OpenState is the only way to the box's records: it repairs what a power cut left of the
// filesystem on device and mounts it on target.
//
// STATE is not encrypted: who has the disk reads the records, and who changes them changes what
// the box remembers. Keys are not among them.
func OpenState(device, target string) error {
	if err := checkFilesystem(device); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("making mount point: %w", err)
	}
	if err := unix.Mount(device, target, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mounting STATE: %w", err)
	}
	return nil
}

// FormatState makes an empty filesystem on device; everything on it is lost.
func FormatState(device string) error {
	return runTool(format.MkfsPath, "-t", "ext4", "-q", "-F", "-b", "4096", "-L", "state", "-m", "0",
		"-O", "metadata_csum,64bit", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard", device)
}

// errDamaged is e2fsck's "errors left uncorrected".
var errDamaged = errors.New("e2fsck could not repair the filesystem")

// checkFilesystem repairs what can be repaired without asking (e2fsck -p, exit codes of e2fsck(8)).
func checkFilesystem(device string) error {
	err := runTool(format.FsckPath, "-p", device)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit), exit.ExitCode() < 0, exit.ExitCode() >= 16:
		return err // the tool did not do its work
	case exit.ExitCode()&(4|8) != 0: // errors left; no superblock could be read
		return fmt.Errorf("%w: %v", errDamaged, err)
	}
	return nil // 1, 2: repaired
}

// inspectState finds out what STATE holds. A filesystem is looked into through a mount on dir that
// writes nothing, not even the journal; repair says whether e2fsck may mend it first.
func inspectState(device, dir string, repair func(device string) error) (stateContent, error) {
	ext4, err := hasExt4(device)
	if err != nil || !ext4 {
		return stateBlank, err
	}
	if repair != nil {
		if err := repair(device); errors.Is(err, errDamaged) {
			return stateDamaged, nil
		} else if err != nil {
			return stateBlank, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return stateBlank, err
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "noload"); err != nil {
		return stateDamaged, nil
	}
	var entries []os.DirEntry
	records := filepath.Join(dir, signetdDir)
	info, err := os.Lstat(records)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = nil
	case err == nil && !info.IsDir():
		err = strangeRecords()
	case err == nil:
		entries, err = os.ReadDir(records)
	}
	if err := errors.Join(err, unix.Unmount(dir, 0)); err != nil {
		return stateBlank, fmt.Errorf("looking into STATE: %w", err)
	}
	if len(entries) == 0 {
		return stateEmpty, nil
	}
	return stateRecords, nil
}

// hasExt4 looks for the superblock's magic number (ext4 documentation, "Super Block").
func hasExt4(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], 1024+0x38); err != nil {
		return false, fmt.Errorf("reading STATE: %w", err)
	}
	return binary.LittleEndian.Uint16(magic[:]) == 0xEF53, nil
}

// ownRecords makes signetd's directory in the mounted STATE. Whoever had the disk may have put anything
// there: a link in the directory's place would give signetd what it points to, up to the TPM, so none
// is followed.
func ownRecords(target string) error {
	root, err := os.OpenFile(target, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening STATE: %w", err)
	}
	defer root.Close()
	if err := errors.Join(root.Chown(0, 0), root.Chmod(0o755)); err != nil {
		return fmt.Errorf("keeping STATE for root: %w", err)
	}
	if err := unix.Mkdirat(int(root.Fd()), signetdDir, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making directory for records: %w", err)
	}
	fd, err := unix.Openat(int(root.Fd()), signetdDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return strangeRecords()
	}
	if err != nil {
		return fmt.Errorf("opening directory for records: %w", err)
	}
	records := os.NewFile(uintptr(fd), signetdDir)
	defer records.Close()
	if err := errors.Join(records.Chown(uidSignetd, uidSignetd), records.Chmod(0o700)); err != nil {
		return fmt.Errorf("giving records to the service: %w", err)
	}
	return nil
}

func strangeRecords() error {
	return &Problem{
		What: "something else is where the box keeps its records on the STATE partition",
		Mend: "put the box's disk back as it was; if nobody changed it on purpose, treat the disk as attacked",
	}
}

// toolTimeout bounds mke2fs and e2fsck on a big, slow disk.
const toolTimeout = 30 * time.Minute

// runTool runs one of the tools in the image; its output is in the error.
func runTool(path string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/sbin:/bin"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		said := strings.Join(strings.Fields(out.String()), " ")
		return fmt.Errorf("%s: %w: %s", filepath.Base(path), err, said[:min(len(said), 400)])
	}
	return nil
}
