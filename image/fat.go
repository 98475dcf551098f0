package image

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// Offsets in a FAT32 boot sector, FSInfo sector and directory entry ("Microsoft FAT Specification").
const (
	bpbBytesPerSector    = 11
	bpbSectorsPerCluster = 13
	bpbReservedSectors   = 14
	bpbFATs              = 16
	bpbTotalSectors      = 32
	bpbSectorsPerFAT     = 36
	bpbRootCluster       = 44
	bpbFSInfo            = 48
	bpbBackupBoot        = 50
	bpbSerial            = 67

	fsInfoFree = 488 // free clusters, then the last one in use

	dirEntrySize = 32
	dirAttr      = 11
	attrLongName = 0x0f
	attrDir      = 0x10
	attrVolume   = 0x08

	fatEnd = 0x0ffffff8 // this and above: last cluster of a chain
)

// fat32 is a FAT32 volume at an offset of a file.
type fat32 struct {
	f                    *os.File
	start                int64 // of the volume in the file, bytes
	data                 int64 // of cluster 2 in the file, bytes
	clusterSize          int64
	clusters             uint32 // number of data clusters
	table                []byte // first FAT
	root                 uint32
	bytesPerSector       int64
	fsInfo, backup       int64 // sectors
	stampDate, stampTime uint16
}

// finishFAT makes a FAT32 volume written by go-diskfs reproducible and correct: directory entries
// get the time at, the volume gets serial, the parent entry of first-level directories points to
// cluster 0 as the specification wants, and FSInfo says how many clusters are free. Without it the
// bytes depend on the clock, and fsck.vfat and strict firmware object.
func finishFAT(f *os.File, start int64, at time.Time, serial [4]byte) error {
	boot := make([]byte, 512)
	if _, err := f.ReadAt(boot, start); err != nil {
		return err
	}
	le16 := func(o int) int64 { return int64(binary.LittleEndian.Uint16(boot[o:])) }
	le32 := func(o int) int64 { return int64(binary.LittleEndian.Uint32(boot[o:])) }
	at = at.UTC()
	v := &fat32{
		f: f, start: start, bytesPerSector: le16(bpbBytesPerSector), root: uint32(le32(bpbRootCluster)),
		fsInfo: le16(bpbFSInfo), backup: le16(bpbBackupBoot),
		stampDate: uint16((at.Year()-1980)<<9 | int(at.Month())<<5 | at.Day()),
		stampTime: uint16(at.Hour()<<11 | at.Minute()<<5 | at.Second()/2),
	}
	fats := int64(boot[bpbFATs]) * le32(bpbSectorsPerFAT)
	v.clusterSize = int64(boot[bpbSectorsPerCluster]) * v.bytesPerSector
	if v.clusterSize == 0 || fats == 0 {
		return fmt.Errorf("not a FAT32 volume")
	}
	v.data = start + (le16(bpbReservedSectors)+fats)*v.bytesPerSector
	v.clusters = uint32((start + le32(bpbTotalSectors)*v.bytesPerSector - v.data) / v.clusterSize)
	v.table = make([]byte, le32(bpbSectorsPerFAT)*v.bytesPerSector)
	if _, err := f.ReadAt(v.table, start+le16(bpbReservedSectors)*v.bytesPerSector); err != nil {
		return err
	}
	for _, sector := range []int64{0, v.backup} {
		if _, err := f.WriteAt(serial[:], start+sector*v.bytesPerSector+bpbSerial); err != nil {
			return err
		}
	}
	if err := v.stampDirectory(v.root); err != nil {
		return err
	}
	return v.writeFSInfo()
}

func (v *fat32) next(cluster uint32) uint32 {
	return binary.LittleEndian.Uint32(v.table[4*cluster:]) & 0x0fffffff
}

// stampDirectory sets times and parent pointers in the directory at cluster and all below it.
func (v *fat32) stampDirectory(cluster uint32) error {
	buf := make([]byte, v.clusterSize)
	for ; cluster < fatEnd; cluster = v.next(cluster) {
		if cluster < 2 || cluster >= v.clusters+2 {
			return fmt.Errorf("directory chain leaves the volume at cluster %d", cluster)
		}
		offset := v.data + int64(cluster-2)*v.clusterSize
		if _, err := v.f.ReadAt(buf, offset); err != nil {
			return err
		}
		var children []uint32
		for e := 0; e < len(buf) && buf[e] != 0; e += dirEntrySize {
			entry := buf[e : e+dirEntrySize]
			if entry[0] == 0xe5 || entry[dirAttr]&attrLongName == attrLongName {
				continue
			}
			entry[13] = 0 // tenths of the creation time
			binary.LittleEndian.PutUint16(entry[14:], v.stampTime)
			binary.LittleEndian.PutUint16(entry[16:], v.stampDate)
			binary.LittleEndian.PutUint16(entry[18:], v.stampDate)
			binary.LittleEndian.PutUint16(entry[22:], v.stampTime)
			binary.LittleEndian.PutUint16(entry[24:], v.stampDate)
			child := uint32(binary.LittleEndian.Uint16(entry[20:]))<<16 | uint32(binary.LittleEndian.Uint16(entry[26:]))
			switch {
			case entry[dirAttr]&attrVolume != 0:
			case string(entry[:2]) == "..":
				if child == v.root {
					clear(entry[20:22])
					clear(entry[26:28])
				}
			case entry[0] == '.':
			case entry[dirAttr]&attrDir != 0:
				children = append(children, child)
			}
		}
		if _, err := v.f.WriteAt(buf, offset); err != nil {
			return err
		}
		for _, child := range children {
			if err := v.stampDirectory(child); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *fat32) writeFSInfo() error {
	free, last := uint32(0), uint32(1)
	for c := uint32(2); c < v.clusters+2; c++ {
		if v.next(c) == 0 {
			free++
		} else {
			last = c
		}
	}
	var counts [8]byte
	binary.LittleEndian.PutUint32(counts[:], free)
	binary.LittleEndian.PutUint32(counts[4:], last)
	for _, sector := range []int64{v.fsInfo, v.backup + v.fsInfo} {
		if _, err := v.f.WriteAt(counts[:], v.start+sector*v.bytesPerSector+fsInfoFree); err != nil {
			return err
		}
	}
	return nil
}
