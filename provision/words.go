package provision

import "signet.internal/appliance/pki"

// Rules are what the site says of a profile's certificates, as written; Policy is the same, compiled. The
// caller changes nothing of it.
func (p *Profile) Rules() pki.ProfileConfig { return p.config }
