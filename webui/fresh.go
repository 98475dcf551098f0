package webui

// What outlives a session is changed by whoever is freshly signed in, see [console.fresh]: secrets, keys and whom
// the box trusts. Nothing else gives the box these orders.

func (c *console) replaceBundle(profile, bundle string, certificates []byte, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.ReplaceBundle(profile, bundle, certificates, who.user) })
}

func (c *console) replaceChallenge(profile, hash string, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.ReplaceChallenge(profile, hash, who.user) })
}

func (c *console) replacePassword(profile, user, hash string, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.ReplacePassword(profile, user, hash, who.user) })
}

func (c *console) putSecret(name string, value []byte, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.PutSecret(name, value, who.user) })
}

func (c *console) rotateRA(who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.RotateRA(who.user) })
}

func (c *console) installChain(authority string, chain []byte, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.InstallChain(authority, chain, who.user) })
}

func (c *console) prepareNext(authority string, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.PrepareNext(authority, who.user) })
}

func (c *console) activateNext(authority string, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.ActivateNext(authority, who.user) })
}

func (c *console) installTLS(chain []byte, who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.InstallTLS(chain, who.user) })
}

func (c *console) dropTLS(who principal) error {
	return c.freshly(who, func() error { return c.cfg.Box.DropTLS(who.user) })
}
