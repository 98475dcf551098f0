package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"signet.internal/image/format"
)

// siteFiles reads the files of a site that enter an image, and no others: a key, a note or a
// version-control directory beside them stays out. A private key among them is refused.
func siteFiles(site fs.FS, names []string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range names {
		data, err := fs.ReadFile(site, name)
		if err != nil {
			return nil, fmt.Errorf("reading site: %w", err)
		}
		if path.Ext(name) == ".key" || strings.HasPrefix(name, "secrets/") || bytes.Contains(data, []byte("PRIVATE KEY-----")) {
			return nil, fmt.Errorf("%s holds a private key, and anyone with the image could read it: move it out of the site's files", name)
		}
		files[name] = data
	}
	return files, nil
}

// overlay is the initramfs segment that makes a base the image of one site: newc, uncompressed,
// padded to 4 bytes, to be appended to the base's. The kernel unpacks the segments in order.
func overlay(site map[string][]byte, release format.Release, cmdline string) ([]byte, error) {
	releaseJSON, err := json.Marshal(release)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{format.ReleaseFile: releaseJSON, format.CmdlineFile: []byte(cmdline)}
	for name, data := range site {
		files[path.Join(format.SiteDir, name)] = data
	}
	// The kernel makes no parent directories. Sorted by name, every directory comes before its files.
	records := map[string]cpio.Record{}
	for name, data := range files {
		name = strings.TrimPrefix(name, "/")
		records[name] = cpio.StaticFile(name, string(data), 0o644)
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			records[dir] = cpio.Directory(dir, 0o755)
		}
	}
	names := make([]string, 0, len(records))
	for name := range records {
		names = append(names, name)
	}
	sort.Strings(names)
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	for _, name := range names {
		if err := w.WriteRecord(cpio.MakeReproducible(records[name])); err != nil {
			return nil, fmt.Errorf("writing overlay: %v", err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("writing overlay: %v", err)
	}
	return pad4(out.Bytes()), nil
}

// pad4 pads an initramfs segment so that the next one begins on a multiple of 4, where the kernel
// looks for it.
func pad4(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
