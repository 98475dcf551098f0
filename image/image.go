// Package image turns a site and a prebuilt base into a signed, measured, bootable disk image.
package image

import (
	"context"
	"io/fs"
)

// Options says what to bake.
type Options struct {
	Site     fs.FS        // the site directory; nothing below secrets/ and no *.key file is read
	Keys     *SigningKeys // the site's signing keys
	Base     string       // directory mkbase wrote
	Out      string       // directory to write; made where absent
	Progress func(string) // told each step in a few words; may be nil
}

// Bake writes Out/signet.img, Out/signet.efi and, last, Out/manifest.json, each whole or not at
// all. The same inputs give the same bytes. Problems of the site come back as provision.Problems.
func Bake(ctx context.Context, o Options) (*Manifest, error) {
	return bake(ctx, o)
}
