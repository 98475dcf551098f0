package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
)

// section is one section to append to the stub.
type section struct {
	name string // at most 8 bytes
	data []byte
}

// Where things are in the PE files written here (PE/COFF specification §2 and §3).
const (
	peOffset         = 0x80 // e_lfanew: the DOS header alone, without the stub's DOS program
	peFileHeader     = 20
	peOptionalHeader = 240 // PE32+ with all 16 data directories
	peSectionHeader  = 40
	peSecurityDir    = 4 // index of the certificate table among the data directories
)

func alignUp(v, a uint32) uint32 { return (v + a - 1) &^ (a - 1) }

// assembleUKI appends sections to a systemd-stub and returns an unsigned PE image padded to 8
// bytes, as Authenticode wants it. The stub's own sections keep their addresses; time stamp,
// checksum and any signature are cleared, so the bytes depend on the inputs alone.
func assembleUKI(stub []byte, add []section) ([]byte, error) {
	f, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		return nil, fmt.Errorf("reading systemd-stub: %v", err)
	}
	optional, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		return nil, fmt.Errorf("systemd-stub is not an x86-64 PE32+ image")
	}
	header, file := *optional, f.FileHeader
	type placed struct {
		pe.SectionHeader32
		data []byte
	}
	var sections []placed
	var end uint32 // first free address
	for _, s := range f.Sections {
		data, err := s.Data()
		if err != nil {
			return nil, fmt.Errorf("reading systemd-stub section %s: %v", s.Name, err)
		}
		p := placed{data: data}
		copy(p.Name[:], s.Name)
		p.VirtualAddress, p.VirtualSize = s.VirtualAddress, s.VirtualSize
		p.SizeOfRawData, p.Characteristics = s.Size, s.Characteristics
		sections = append(sections, p)
		end = max(end, s.VirtualAddress+s.VirtualSize)
	}
	for _, s := range add {
		if f.Section(s.name) != nil {
			return nil, fmt.Errorf("systemd-stub already has a section %s", s.name)
		}
		p := placed{data: s.data}
		copy(p.Name[:], s.name)
		p.VirtualAddress, p.VirtualSize = alignUp(end, header.SectionAlignment), uint32(len(s.data))
		p.SizeOfRawData = alignUp(p.VirtualSize, header.FileAlignment)
		p.Characteristics = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ
		sections = append(sections, p)
		end = p.VirtualAddress + p.VirtualSize
	}

	file.NumberOfSections = uint16(len(sections))
	file.SizeOfOptionalHeader = peOptionalHeader
	file.TimeDateStamp, file.PointerToSymbolTable, file.NumberOfSymbols = 0, 0, 0
	header.NumberOfRvaAndSizes = 16
	header.DataDirectory[peSecurityDir] = pe.DataDirectory{}
	header.CheckSum = 0
	headers := peOffset + 4 + peFileHeader + peOptionalHeader + peSectionHeader*len(sections)
	header.SizeOfHeaders = alignUp(uint32(headers), header.FileAlignment)
	if header.SizeOfHeaders > sections[0].VirtualAddress {
		return nil, fmt.Errorf("%d section headers do not fit before systemd-stub's first section", len(sections))
	}
	header.SizeOfImage = alignUp(end, header.SectionAlignment)
	header.SizeOfInitializedData = 0
	offset := header.SizeOfHeaders
	for i := range sections {
		s := &sections[i]
		s.PointerToRawData = offset
		offset += alignUp(s.SizeOfRawData, header.FileAlignment)
		if s.Characteristics&pe.IMAGE_SCN_CNT_INITIALIZED_DATA != 0 {
			header.SizeOfInitializedData += s.SizeOfRawData
		}
	}

	out := make([]byte, alignUp(offset, 8))
	copy(out, stub[:0x40])
	binary.LittleEndian.PutUint32(out[0x3c:], peOffset)
	w := bytes.NewBuffer(out[peOffset:peOffset])
	w.WriteString("PE\x00\x00")
	for _, v := range []any{file, header} {
		if err := binary.Write(w, binary.LittleEndian, v); err != nil {
			return nil, err
		}
	}
	for _, s := range sections {
		if err := binary.Write(w, binary.LittleEndian, s.SectionHeader32); err != nil {
			return nil, err
		}
		copy(out[s.PointerToRawData:], s.data)
	}
	return out, nil
}
