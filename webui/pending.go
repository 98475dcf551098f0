package webui

// waiting is what waits for an operator.
type waiting struct {
	Requests []PendingRequest
	Decide   bool // the visitor may
}

func (c *console) waiting(who principal) (*waiting, error) {
	requests, err := c.pending()
	if err != nil || len(requests) == 0 {
		return nil, err
	}
	return &waiting{Requests: requests, Decide: who.role >= operator}, nil
}
