package enroll

import "context"

// Poll answers a device that asks again for a held request: Pending, the certificate, or ErrDenied.
func (e *Engine) Poll(ctx context.Context, p Poll) (*Result, error) { return nil, ErrNoRequest }

// PendingRequests lists the requests that wait for a person, oldest first.
func (e *Engine) PendingRequests() ([]PendingRequest, error) { return nil, nil }

// Approve has a held request issued; actor is the user who decided so.
func (e *Engine) Approve(ctx context.Context, id, actor string) error { return ErrNoRequest }

// Deny refuses a held request for good; the reason is told to the device.
func (e *Engine) Deny(ctx context.Context, id, actor, reason string) error { return ErrNoRequest }
