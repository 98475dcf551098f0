package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// diskSize is the size of a machine's disk; only what is written takes space.
const diskSize = 4 << 30

// span is a range of bytes.
type span struct{ start, size int64 }

// prepareDisk makes disk.img from signet.img, or brings the ESP of an existing one up to date: KEYS
// and STATE belong to the machine and are never touched.
func (m *Machine) prepareDisk(out string) error {
	sum, err := imageSum(out)
	if err != nil {
		return err
	}
	image := filepath.Join(out, "signet.img")
	_, err = os.Stat(m.DiskPath())
	switch {
	case errors.Is(err, os.ErrNotExist):
		tmp := m.path("disk.new")
		if err := makeDisk(image, tmp); err != nil {
			return fmt.Errorf("making the machine's disk: %w", err)
		}
		if err := os.Rename(tmp, m.DiskPath()); err != nil {
			return fmt.Errorf("making the machine's disk: %w", err)
		}
	case err != nil:
		return fmt.Errorf("preparing the machine's disk: %w", err)
	case m.state.Image != sum:
		if err := replaceESP(image, m.DiskPath()); err != nil {
			return fmt.Errorf("putting the rebuilt image on the machine's disk: %w", err)
		}
	}
	m.state.Image = sum
	return m.writeState()
}

// imageSum is the hash the manifest records for signet.img.
func imageSum(out string) (string, error) {
	data, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil {
		return "", fmt.Errorf("reading the image's manifest: %w", err)
	}
	var manifest struct {
		Files map[string]struct {
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return "", fmt.Errorf("reading the image's manifest: %w", err)
	}
	sum := manifest.Files["signet.img"].SHA256
	if sum == "" {
		return "", errors.New("the image's manifest does not describe signet.img")
	}
	return sum, nil
}

func makeDisk(image, path string) error {
	src, err := os.Open(image)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.Create(path)
	if err != nil {
		return err
	}
	err = dst.Truncate(max(diskSize, info.Size()))
	if err == nil {
		err = copySparse(dst, src, span{0, info.Size()})
	}
	return errors.Join(err, dst.Close())
}

func replaceESP(image, disk string) error {
	from, err := findESP(image)
	if err != nil {
		return err
	}
	to, err := findESP(disk)
	if err != nil {
		return err
	}
	if from != to {
		return errors.New("the image's partitions lie elsewhere than the machine's: signet run --fresh starts over")
	}
	src, err := os.Open(image)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(dst.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, to.start, to.size)
	if err == nil {
		err = copySparse(dst, src, from)
	}
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

// findESP returns where the EFI system partition of a disk image lies.
func findESP(path string) (span, error) {
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		return span{}, fmt.Errorf("%s: %v", path, err)
	}
	defer d.Close()
	table, err := d.GetPartitionTable()
	if err != nil {
		return span{}, fmt.Errorf("%s: %v", path, err)
	}
	for _, p := range table.GetPartitions() {
		if g, ok := p.(*gpt.Partition); ok && g.Type == gpt.EFISystemPartition {
			return span{p.GetStart(), p.GetSize()}, nil
		}
	}
	return span{}, fmt.Errorf("%s has no EFI system partition", path)
}

// copySparse copies the written parts of a range from src to the same place in dst.
func copySparse(dst, src *os.File, r span) error {
	end := r.start + r.size
	for at := r.start; at < end; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil // nothing but holes from here
		} else if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		n := min(hole, end) - data
		if _, err := io.Copy(io.NewOffsetWriter(dst, data), io.NewSectionReader(src, data, n)); err != nil {
			return err
		}
		at = data + n
	}
	return nil
}
