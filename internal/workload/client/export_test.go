package client

import (
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/parleymesh/parley/internal/identity"
)

// Parse is what one message says, for the fuzz target.
func Parse(msg *workloadpb.X509SVIDResponse) (*identity.Credential, *identity.Trust, error) {
	st, err := parse(msg, nil)
	if err != nil {
		return nil, nil, err
	}
	return st.credential, st.trust, nil
}
