package webui

import (
	"net/url"
	"regexp"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// TestOnce: a page that shows a secret makes no other when it is loaded again, which sends its form again; one that
// was refused is sent again, corrected.
func TestOnce(t *testing.T) {
	minted := 0
	box := newBox(t, withIOT, func(c *Config) {
		mint := c.Mint
		c.Mint = func(m Mint) (string, time.Time, error) { minted++; return mint(m) }
	})
	out := box.mustClaim()
	who := withCookie(box.signedIn("alice", out.Password))
	made := func() int { // whatever was made of anything
		n := minted + len(box.fake.orders)
		for _, r := range box.records() {
			if r.Action == audit.TokenCreated || r.Action == audit.UserCreated || r.Action == audit.PasswordChanged {
				n++
			}
		}
		return n
	}
	field := regexp.MustCompile(`name="once" value="([A-Z2-7]{26})"`)
	for _, c := range []struct {
		form, to string // the page with the form, and where that is sent
		values   url.Values
		says     string
	}{
		{"/setup?profile=iot", "/setup?profile=iot", url.Values{"make": {"challenge"}}, "Copy it now"},
		{"/setup?profile=iot", "/setup?profile=iot", url.Values{"make": {"password"}, "user": {"device"}}, "Copy it now"},
		{"/setup?profile=iot", "/setup?profile=iot", url.Values{"make": {"one-time"}, "cn": {"cam-1"}}, "Copy it now"},
		{"/connect/iot", "/connect/iot/challenge", url.Values{"cn": {"cam-1"}}, "Challenge for cam-1"},
		{"/account?do=token", "/account/tokens", url.Values{"name": {"jamf"}, "role": {"auditor"}, "days": {"9"}}, "Your new token"},
		{"/users?do=add", "/users", url.Values{"user": {"bob"}, "role": {"auditor"}}, "Password of bob"},
		{"/users/bob?do=password", "/users/bob/password", nil, "Password of bob"},
		{"/profiles/iot?do=challenge", "/profiles/iot/challenge", url.Values{"generate": {"yes"}}, "The new challenge"},
		{"/profiles/iot?do=password&of=device", "/profiles/iot/password", url.Values{"generate": {"yes"}, "of": {"device"}}, "The new password"},
	} {
		fields := field.FindAllSubmatch(box.get(c.form, who).body, -1)
		if fields == nil {
			t.Errorf("%s has no form of the kind", c.form)
			continue
		}
		values := url.Values{"once": {string(fields[0][1])}}
		for name, v := range c.values {
			values[name] = v
		}
		before := made()
		box.submit(c.to, values, who).says(t, 200, c.says)
		once := made()
		again := box.submit(c.to, values, who)
		again.says(t, 409, "This was shown once, and nothing new was made now.", "Make another if you do not have it.")
		again.saysNot(t, c.says)
		if once == before || made() != once {
			t.Errorf("%s: %d were made, then %d", c.to, once-before, made()-once)
		}
		next := field.FindSubmatch(again.body)
		if next == nil || string(next[1]) == values.Get("once") {
			t.Errorf("%s: the page does not let another be made", c.to)
		}
	}
	values := url.Values{"once": {"A"}, "name": {""}, "role": {"auditor"}, "days": {"9"}}
	box.submit("/account/tokens", values, who).says(t, 422)
	values.Set("name", "corrected")
	box.submit("/account/tokens", values, who).says(t, 200, "Your new token")

	for i := range maxOnce {
		box.console.forms.take([32]byte{1, byte(i), byte(i >> 8)})
	}
	if n := len(box.console.forms.sent); n != maxOnce {
		t.Errorf("%d are remembered", n)
	}
}
