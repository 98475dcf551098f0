package browsertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// axe is axe-core 4.14.1, which make test fetches, as seen from a package of the first level.
const (
	axeFile   = "../build/axe/node_modules/axe-core/axe.min.js"
	axeSHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

// Look holds the page against the width of a phone and against axe-core, and keeps pictures of it where
// SIGNET_SCREENSHOTS names a directory. That a page looks good it does not tell.
func (b *Tab) Look(name string) {
	b.T.Helper()
	schemes := []string{"light"}
	if b.Closely {
		schemes = []string{"dark", "light"}
	}
	for _, screen := range []struct {
		name  string
		width int64
	}{{"phone", 390}, {"desktop", 1280}} {
		for _, scheme := range schemes {
			b.show(screen.width, scheme)
			if width := Eval[int64](b, `document.documentElement.scrollWidth`); width > screen.width {
				b.T.Errorf("%s: %d px wide on a screen of %d", name, width, screen.width)
			}
			full := b.Pictures + name + "-" + screen.name
			if b.Closely {
				full += "-" + scheme
				b.accessible(full)
			}
			b.picture(full)
		}
	}
	if !b.Closely {
		b.accessible(name)
	}
	if u, err := url.Parse(b.At()); err == nil {
		b.lookedAt(u.Path)
	}
}

// See opens a page and looks at it.
func (b *Tab) See(name, path, selector string) {
	b.T.Helper()
	b.Open(path, selector)
	b.Look(name)
}

// show gives the tab a screen and waits until the page has it.
func (b *Tab) show(width int64, scheme string) {
	b.T.Helper()
	_, err := chromedp.Call(b.Context, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	if err == nil {
		err = chromedp.Do(b.Context, chromedp.EmulateViewport(width, 900))
	}
	if err != nil {
		b.T.Fatal(err)
	}
	b.Until("the page is of the screen's width", `matchMedia("(width: `+strconv.FormatInt(width, 10)+`px) and (prefers-color-scheme: `+scheme+`)").matches`)
}

func (b *Tab) picture(name string) {
	b.T.Helper()
	dir := os.Getenv("SIGNET_SCREENSHOTS")
	if dir == "" {
		return
	}
	picture, err := chromedp.Run(b.Context, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644)
	}
	if err != nil {
		b.T.Fatalf("%s: %v", name, err)
	}
}

// accessible has axe-core look for what people with disabilities could not use. It needs JavaScript.
func (b *Tab) accessible(name string) {
	b.T.Helper()
	if b.plain {
		return
	}
	script, err := os.ReadFile(axeFile)
	if err != nil {
		if os.Getenv("CI") != "" {
			b.T.Fatalf("axe-core is missing: make test fetches it: %v", err)
		}
		b.T.Logf("%s: not looked at by axe-core, which make test fetches", name)
		return
	}
	if sum := sha256.Sum256(script); hex.EncodeToString(sum[:]) != axeSHA256 {
		b.T.Fatalf("%s is not the axe-core that this test knows", axeFile)
	}
	b.within(name+": running axe-core", func(ctx context.Context) error {
		found, err := evaluate[string](ctx, string(script)+`;(async () => {
			const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]});
			return found.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.target.join(" ") + " " + n.html.slice(0, 160)).slice(0, 4).join("; ")).join("\n");
		})()`, chromedp.EvalAwaitPromise)
		if found != "" {
			b.T.Errorf("%s: axe-core finds\n%s", name, found)
		}
		return err
	})
}
