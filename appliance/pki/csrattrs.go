package pki

// CSRAttrs is what an EST server answers to csrattrs for this profile, as DER; nil where there is
// nothing to say. It must not be changed.
func (p *Profile) CSRAttrs() []byte { return p.csrAttrs }
