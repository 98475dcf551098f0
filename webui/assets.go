package webui

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

// assets are the console's static files by name.
type assets map[string]asset

type asset struct {
	mediaType string
	body      []byte
	version   string // of the contents; part of the URL, so that a new image needs no reload
}

func loadAssets(files fs.FS) (assets, error) {
	mediaTypes := map[string]string{".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".js": "text/javascript; charset=utf-8"}
	out := assets{}
	names, err := fs.Glob(files, "static/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		mediaType, ok := mediaTypes[path.Ext(name)]
		if !ok {
			return nil, fmt.Errorf("no media type for %s", name)
		}
		body, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		out[path.Base(name)] = asset{mediaType, body, hex.EncodeToString(sum[:6])}
	}
	return out, nil
}

func (a assets) url(name string) (string, error) {
	one, ok := a[name]
	if !ok {
		return "", fmt.Errorf("no static file %s", name)
	}
	return "/static/" + name + "?v=" + one.version, nil
}

func (c *console) staticFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	one, ok := c.assets[r.PathValue("file")]
	if !ok {
		return errNotFound
	}
	caching := "no-cache"
	if r.URL.Query().Get("v") == one.version {
		caching = "public, max-age=31536000, immutable"
	}
	w.Header().Set("Cache-Control", caching)
	tag := `"` + one.version + `"`
	w.Header().Set("ETag", tag)
	if strings.Contains(r.Header.Get("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	write(w, http.StatusOK, one.mediaType, one.body)
	return nil
}
