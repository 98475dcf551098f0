package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"time"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"signet.internal/image/format"
)

// initialStateSize is STATE's size in an image. The box grows it to the end of its disk before it
// first uses it, so it only has to hold the place.
const initialStateSize = 16 * format.MiB

// writeDisk writes a GPT disk image, sparse, that must not exist yet: ESP (FAT32 with the given
// files by absolute path), KEYS and STATE, both empty. Identifiers derive from the site's name and
// times are at, so the bytes depend on the arguments alone.
func writeDisk(imagePath, site string, at time.Time, files map[string][]byte) (err error) {
	layout := []struct {
		name, kind string
		size       int64
	}{
		{format.ESPName, string(gpt.EFISystemPartition), format.ESPSize},
		{format.KEYSName, format.KEYSType, format.KEYSSize},
		{format.STATEName, format.STATEType, initialStateSize},
	}
	table := &gpt.Table{
		ProtectiveMBR: true, GUID: deriveGUID(site, "disk"),
		LogicalSectorSize: format.SectorSize, PhysicalSectorSize: format.SectorSize,
	}
	next := int64(format.MiB)
	for i, p := range layout {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1, Name: p.name, Type: gpt.Type(p.kind), GUID: deriveGUID(site, p.name),
			Start: uint64(next / format.SectorSize), End: uint64((next+p.size)/format.SectorSize) - 1,
		})
		next += p.size
	}
	d, err := diskfs.Create(imagePath, next+format.MiB, diskfs.SectorSizeDefault) // + the backup table
	if err != nil {
		return fmt.Errorf("writing disk image: %v", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Partition(table); err != nil {
		return fmt.Errorf("partitioning disk image: %v", err)
	}
	if err := writeESP(d, files); err != nil {
		return fmt.Errorf("writing the image's ESP: %w", err)
	}
	f, err := os.OpenFile(imagePath, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("writing disk image: %w", err)
	}
	serial := sha256.Sum256([]byte("signet FAT serial\x00" + site))
	err = finishFAT(f, format.MiB, at, [4]byte(serial[:4]))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the image's ESP: %w", err)
	}
	return nil
}

func writeESP(d *disk.Disk, files map[string][]byte) error {
	esp, err := d.CreateFilesystem(disk.FilesystemSpec{
		Partition: 1, FSType: filesystem.TypeFat32, VolumeLabel: format.ESPName, Reproducible: true,
	})
	if err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := esp.Mkdir(path.Dir(name)); err != nil {
			return fmt.Errorf("%s: %v", path.Dir(name), err)
		}
		f, err := esp.OpenFile(name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return fmt.Errorf("%s: %v", name, err)
		}
		n, err := f.Write(files[name])
		if err == nil && n != len(files[name]) {
			err = fmt.Errorf("wrote %d of %d bytes", n, len(files[name]))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// deriveGUID is a version 8 UUID (RFC 9562 §5.8) from the site's name and what it names.
func deriveGUID(site, role string) string {
	h := sha256.Sum256([]byte("signet GUID\x00" + role + "\x00" + site))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
