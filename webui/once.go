package webui

import (
	"crypto/sha256"
	"net/http"
	"slices"
	"sync"
)

// onceForms are the forms, newest last, that made a secret which the page after them showed. Such a page cannot be
// the next address's, as with [console.done], because nothing keeps the secret: loaded again, a browser sends its
// form again. It is kept in memory alone, like the sessions that may send it.
type onceForms struct {
	mu   sync.Mutex
	sent [][sha256.Size]byte // at most maxOnce
}

const maxOnce = 4096

// errShownOnce refuses a form that made its secret before.
var errShownOnce = &ConflictError{What: "this was shown once, and nothing new was made now", Mend: "make another if you do not have it"}

// take says whether a form is new, and remembers it.
func (o *onceForms) take(key [sha256.Size]byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.sent, key) {
		return false
	}
	if len(o.sent) == maxOnce {
		o.sent = slices.Delete(o.sent, 0, 1)
	}
	o.sent = append(o.sent, key)
	return true
}

// forget has a form be taken again.
func (o *onceForms) forget(key [sha256.Size]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent = slices.DeleteFunc(o.sent, func(k [sha256.Size]byte) bool { return k == key })
}

// once makes a secret for a form that was read, unless that made one before. What is refused can be sent again.
// A form without the field that tells it from others is no page's, and whoever sends it sees to that.
func (c *console) once(r *http.Request, who principal, makes func() error) error {
	field := r.PostForm.Get("once")
	if field == "" {
		return makes()
	}
	key := sha256.Sum256([]byte(who.user + "\x00" + field))
	if !c.forms.take(key) {
		return errShownOnce
	}
	err := makes()
	if err != nil {
		c.forms.forget(key)
	}
	return err
}
