package box

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"signet.internal/image/format"
)

// disk is the box's own disk: the one with the ESP it was started from.
type disk struct {
	name  string // as the kernel calls it, "vda"
	node  string // "/dev/vda"
	table *gpt.Table
	keys  *gpt.Partition
	state *gpt.Partition
}

// findDisk finds the box's own disk: by the partition GUID the boot loader left, else (it left
// none) by a partition of the KEYS type. Exactly one disk must do.
func (m *Machine) findDisk() (*disk, error) {
	names, err := m.blockDevices()
	if err != nil {
		return nil, err
	}
	boot, bootErr := m.bootPartition()
	var own []*disk
	for _, name := range names {
		node := m.path(filepath.Join("/dev", name))
		table, err := readTable(node)
		if err != nil {
			continue // not partitioned, no medium, or no disk of ours
		}
		d := &disk{name: name, node: node, table: table}
		d.keys, d.state = partitionOf(table, format.KEYSType), partitionOf(table, format.STATEType)
		switch {
		case bootErr == nil && hasPartition(table, boot), bootErr != nil && d.keys != nil:
			own = append(own, d)
		}
	}
	return theOne(own, bootErr == nil)
}

// theOne is the only disk of candidates, complete.
func theOne(candidates []*disk, booted bool) (*disk, error) {
	switch {
	case len(candidates) == 0 && booted:
		return nil, &Problem{What: "the disk the box was started from is not there any more", Mend: "check the disk and its cable; the kernel may lack this machine's disk controller"}
	case len(candidates) == 0:
		return nil, &Problem{What: "no disk with a KEYS partition was found", Mend: "flash the image to this machine's disk; the kernel may lack this machine's disk controller"}
	case len(candidates) > 1:
		var names []string
		for _, d := range candidates {
			names = append(names, d.node)
		}
		return nil, &Problem{
			What: "more than one disk holds this box: " + strings.Join(names, ", "),
			Mend: "unplug the disks that are not this box's (a copy or the installation stick) and start again",
		}
	}
	d := candidates[0]
	if d.keys == nil || d.state == nil {
		return nil, &Problem{What: "the disk " + d.node + " has no KEYS and STATE partitions", Mend: "flash the whole image to the disk, not only its ESP"}
	}
	if d.keys.Size != format.KEYSSize {
		return nil, &Problem{What: "the KEYS partition of " + d.node + " has another size than this image's", Mend: "flash the image again; clear the TPM first if this machine's keys are to be given up"}
	}
	return d, nil
}

// blockDevices lists whole disks by their kernel names.
func (m *Machine) blockDevices() ([]string, error) {
	entries, err := os.ReadDir(m.path("/sys/block"))
	if err != nil {
		return nil, fmt.Errorf("listing disks: %w", err)
	}
	var names []string
	for _, e := range entries {
		switch prefix := strings.TrimRight(e.Name(), "0123456789"); prefix {
		case "loop", "ram", "zram", "sr", "fd", "dm-":
			// never a box's own disk
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readTable reads the GPT of a disk, from its backup where a power cut hit the first one.
func readTable(node string) (*gpt.Table, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table, err := gpt.Read(file.New(f, true), format.SectorSize, format.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("reading partition table of %s: %w", node, err)
	}
	return table, nil
}

func partitionOf(t *gpt.Table, kind string) *gpt.Partition {
	for _, p := range t.Partitions {
		if strings.EqualFold(string(p.Type), kind) {
			return p
		}
	}
	return nil
}

func hasPartition(t *gpt.Table, guid string) bool {
	for _, p := range t.Partitions {
		if p.Type != gpt.Unused && strings.EqualFold(p.GUID, guid) {
			return true
		}
	}
	return false
}

// partitionNode is the device of one partition: "/dev/vda3", "/dev/nvme0n1p3".
func (d *disk) partitionNode(p *gpt.Partition) string {
	separator := ""
	if last := d.node[len(d.node)-1]; last >= '0' && last <= '9' {
		separator = "p"
	}
	return d.node + separator + strconv.Itoa(p.Index)
}

// grown says where STATE would end if it took all of the disk, in sectors, and whether that is
// further than it reaches now. Partitions end on a MiB.
func (d *disk) grown() (last uint64, more bool, err error) {
	size, err := deviceSize(d.node)
	if err != nil {
		return 0, false, err
	}
	for _, p := range d.table.Partitions {
		if p.Type != gpt.Unused && p.Start > d.state.Start {
			return 0, false, &Problem{What: "another partition lies behind STATE on " + d.node, Mend: "flash the whole image to a disk of its own"}
		}
	}
	const perMiB = format.MiB / format.SectorSize
	const backup = 33 // sectors of the backup table: 32 of entries, one header (UEFI 2.10 §5.3)
	usable := uint64(size)/format.SectorSize - backup
	last = usable/perMiB*perMiB - 1
	return last, last > d.state.End, nil
}

// grow rewrites the partition table so that STATE reaches the end of the disk. The backup table is
// written and synced before the first one, so a power cut leaves one that is whole. Nothing on
// the disk may be open. The caller makes the kernel read the table again.
func (d *disk) grow() error {
	last, more, err := d.grown()
	if err != nil || !more {
		return err
	}
	size, err := deviceSize(d.node)
	if err != nil {
		return err
	}
	d.table.Resize(uint64(size))
	d.state.End = last
	d.state.Size = (d.state.End - d.state.Start + 1) * format.SectorSize
	if err := d.writeTable(size); err != nil {
		return fmt.Errorf("growing STATE: %w", err)
	}
	return nil
}

// repair writes the first partition table again where only the backup was whole: that is how a
// power cut in grow leaves a disk, and the kernel sees no partitions until it is done.
func (d *disk) repair() error {
	if !d.table.RecoveredFromBackup {
		return nil
	}
	size, err := deviceSize(d.node)
	if err != nil {
		return err
	}
	if err := d.writeTable(size); err != nil {
		return fmt.Errorf("repairing partition table of %s: %w", d.node, err)
	}
	return d.reread()
}

// writeTable writes both partition tables to a disk of size bytes, the backup first, and syncs.
func (d *disk) writeTable(size int64) error {
	f, err := os.OpenFile(d.node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.table.Write(f, size); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// growState grows STATE, if it can, and shows the kernel.
func (d *disk) growState() error {
	_, more, err := d.grown()
	if err != nil || !more {
		return err
	}
	if err := d.grow(); err != nil {
		return err
	}
	return d.reread()
}

// reread makes the kernel read the partition table again and waits until STATE has its new size.
func (d *disk) reread() error {
	f, err := os.Open(d.node)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("making the kernel read the partition table of %s again: %w", d.node, err)
	}
	want := int64(d.state.End-d.state.Start+1) * format.SectorSize
	for range 100 {
		if size, err := deviceSize(d.partitionNode(d.state)); err == nil && size == want {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("the kernel does not show STATE of %s in its new size", d.node)
}

// deviceSize is the size in bytes of a device or file.
func deviceSize(node string) (int64, error) {
	f, err := os.Open(node)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}
