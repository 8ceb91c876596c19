package renew

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// attempt bounds one request to the issuer.
const attempt = 30 * time.Second

// obtain gets a credential over a key that no earlier certificate had.
func (k *Keeper) obtain(ctx context.Context) (*identity.Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("renew %s: make a key: %w", k.cfg.ID, err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("renew %s: make a request: %w", k.cfg.ID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	chain, err := k.cfg.Issuer.Issue(ctx, k.cfg.ID, csr)
	if err != nil {
		return nil, fmt.Errorf("renew %s: %w", k.cfg.ID, err)
	}
	c, err := identity.NewCredential(chain, key)
	if err == nil {
		err = k.accept(c)
	}
	if err != nil {
		return nil, fmt.Errorf("renew %s: the issuer's answer is unusable: %w", k.cfg.ID, err)
	}
	return c, nil
}

// accept refuses what would be worse than the credential that is there.
func (k *Keeper) accept(c *identity.Credential) error {
	if c.ID != k.cfg.ID {
		return fmt.Errorf("it is for %s", c.ID)
	}
	now := k.cfg.Clock.Now()
	if now.After(c.NotAfter()) {
		return fmt.Errorf("it ended at %s, and this machine's clock says %s: %w",
			c.NotAfter().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), identity.ErrExpired)
	}
	trust := k.cfg.Trust()
	if trust == nil {
		return nil
	}
	// Who may take part is the peers' decision, and a clock that is behind is no
	// reason to go without; a chain that leads nowhere is.
	if _, err := trust.Verify(c.Chain, now); errors.Is(err, identity.ErrChain) || errors.Is(err, identity.ErrChainTooLong) {
		return err
	}
	return nil
}
