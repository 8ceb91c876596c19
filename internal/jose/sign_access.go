package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"

	"github.com/parleymesh/parley/internal/identity"
)

// accessClaims are those of RFC 9068 section 2.2.
type accessClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	ClientID string `json:"client_id"`
	Audience any    `json:"aud"`
	Scope    string `json:"scope,omitempty"`
	Expires  int64  `json:"exp"`
	Issued   int64  `json:"iat"`
	ID       string `json:"jti"`
}

// SignAccess makes an access token of RFC 9068 that says t, signed with ES256.
// Times are cut to seconds. The error is ErrAlgorithm for a key that is not of
// P-256, ErrTokenClaims where t lacks what such a token must say, or ErrTooLong.
func SignAccess(key crypto.Signer, kid string, t identity.Token, issued time.Time) (string, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || kid == "" {
		return "", fmt.Errorf("sign an access token: %w", ErrAlgorithm)
	}
	c := accessClaims{
		Issuer: t.Issuer, Subject: t.Subject, ClientID: t.ClientID, Audience: t.Audiences,
		Scope: strings.Join(t.Scopes, " "), Expires: t.Expires.Unix(), Issued: issued.Unix(), ID: rand.Text(),
	}
	if t.Issuer == "" || t.Subject == "" || t.ClientID == "" || len(t.Audiences) == 0 || c.Expires <= c.Issued {
		return "", fmt.Errorf("sign an access token: %w", ErrTokenClaims)
	}
	if len(t.Audiences) == 1 {
		c.Audience = t.Audiences[0]
	}
	token, err := sign(key, kid, TypeAccess, c)
	if err != nil {
		return "", fmt.Errorf("sign an access token: %w", err)
	}
	return token, nil
}

// MarshalKey is a JWK set of one public key, for signatures by ES256.
func MarshalKey(kid string, pub *ecdsa.PublicKey) ([]byte, error) {
	out, err := json.Marshal(josev4.JSONWebKeySet{Keys: []josev4.JSONWebKey{{
		Key: pub, KeyID: kid, Use: "sig", Algorithm: string(josev4.ES256),
	}}})
	if err != nil {
		return nil, fmt.Errorf("write a JWK set: %w", err)
	}
	return out, nil
}
