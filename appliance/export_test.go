package appliance

// AcknowledgeRollback is what an administrator orders on the page of the box.
func (a *Appliance) AcknowledgeRollback(actor string) error { return a.acknowledgeRollback(actor) }
