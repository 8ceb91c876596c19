// Package jose signs and verifies JWTs: JWT-SVIDs with their key sets, and the
// access tokens of issuers outside of the mesh, whose keys it admits. It is a
// strict layer before the JOSE library, which it alone imports.
//
// It refuses every token that is not exactly what its rules describe: an
// algorithm that the key does not have, a key that the token brings, a claim that
// is missing, and anything that two readers could read differently.
package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/parleymesh/parley/internal/identity"
)

// maxToken is the longest token that is signed or read, in bytes: more than any
// header field that proxies forward by default.
const maxToken = 8 << 10

// Errors of SignSVID and VerifySVID. None of them repeats the token.
var (
	ErrMalformed = errors.New("not a JWT in compact form")
	ErrTooLong   = errors.New("a token is at most 8192 bytes")
	ErrHeader    = errors.New("a JWT-SVID's header holds alg, kid and typ only, typ being JWT or JOSE")
	ErrAlgorithm = errors.New("the token's algorithm is not its key's")
	ErrUntrusted = errors.New("no trusted bundle for the token's trust domain")
	ErrKey       = errors.New("the token's key is not in the bundle of its trust domain")
	ErrSignature = errors.New("the token's signature does not verify")
	ErrClaims    = errors.New("a JWT-SVID has a workload's SPIFFE ID as sub, at least one aud, and exp")
	ErrAudience  = errors.New("the token is for another audience")
	ErrExpired   = errors.New("the token has expired")
	ErrNotYet    = errors.New("the token is not valid yet")
	ErrWeakKey   = errors.New("a token is signed with ECDSA P-256, P-384, P-521 or RSA of 2048 to 8192 bits")
)

// claims are what SignSVID puts in: the three that JWT-SVID.md section 3 asks
// for, and iat.
type claims struct {
	Subject  identity.ID `json:"sub"`
	Audience any         `json:"aud"`
	Expires  int64       `json:"exp"`
	Issued   int64       `json:"iat"`
}

// SignSVID makes a JWT-SVID for id, signed with ES256, with the headers alg, kid
// and typ. Times are cut to seconds. A single audience is a string, several are
// an array (RFC 7519 section 4.1.3).
func SignSVID(key crypto.Signer, kid string, id identity.ID, audience []string, issued, expires time.Time) (string, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || kid == "" {
		return "", fmt.Errorf("sign a JWT-SVID: %w", ErrAlgorithm)
	}
	c := claims{Subject: id, Audience: audience, Expires: expires.Unix(), Issued: issued.Unix()}
	if id.Path() == "" || len(audience) == 0 || slices.Contains(audience, "") || c.Expires <= c.Issued {
		return "", fmt.Errorf("sign a JWT-SVID: %w", ErrClaims)
	}
	if len(audience) == 1 {
		c.Audience = audience[0]
	}
	token, err := sign(key, kid, "JWT", c)
	if err != nil {
		return "", fmt.Errorf("sign a JWT-SVID: %w", err)
	}
	return token, nil
}

// sign makes a compact JWS of claims with ES256 and the headers alg, kid and typ.
func sign(key crypto.Signer, kid, typ string, claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signer, err := josev4.NewSigner(josev4.SigningKey{
		Algorithm: josev4.ES256,
		Key:       josev4.JSONWebKey{Key: cryptosigner.Opaque(key), KeyID: kid},
	}, new(josev4.SignerOptions).WithType(josev4.ContentType(typ)))
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	token, err := jws.CompactSerialize()
	if err == nil && len(token) > maxToken {
		err = ErrTooLong
	}
	if err != nil {
		return "", err
	}
	return token, nil
}

// KeyID is the key id that Parley gives a signing key: its RFC 7638 thumbprint.
func KeyID(pub crypto.PublicKey) (string, error) {
	sum, err := (&josev4.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("key id: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// MarshalBundle is the JWT keys of b as a JWK set for the Workload API's
// FetchJWTBundles (JWT-SVID.md section 6.1): each with use and kid, in order of
// kid, without the X.509 roots, which clients would take for JWT keys. A bundle
// without JWT keys is an empty set, which trusts no token.
func MarshalBundle(b *identity.Bundle) ([]byte, error) {
	set := josev4.JSONWebKeySet{Keys: []josev4.JSONWebKey{}}
	for kid, pub := range b.JWTKeys {
		if kid == "" || svidAlgorithms(pub) == nil {
			return nil, fmt.Errorf("bundle of %s: %w", b.TrustDomain, ErrWeakKey)
		}
		set.Keys = append(set.Keys, josev4.JSONWebKey{Key: pub, KeyID: kid, Use: "jwt-svid"})
	}
	slices.SortFunc(set.Keys, func(a, b josev4.JSONWebKey) int {
		if a.KeyID < b.KeyID {
			return -1
		}
		return 1
	})
	out, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("bundle of %s: %w", b.TrustDomain, err)
	}
	return out, nil
}

// svidAlgorithms are those of JWT-SVID.md section 2.1, which has no EdDSA.
func svidAlgorithms(pub crypto.PublicKey) []josev4.SignatureAlgorithm {
	if _, ok := pub.(ed25519.PublicKey); ok {
		return nil
	}
	return algorithms(pub)
}

// algorithms are those that a key may sign with: the key says them, never the
// token. None for a key that is not admitted.
func algorithms(pub crypto.PublicKey) []josev4.SignatureAlgorithm {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []josev4.SignatureAlgorithm{josev4.ES256}
		case elliptic.P384():
			return []josev4.SignatureAlgorithm{josev4.ES384}
		case elliptic.P521():
			return []josev4.SignatureAlgorithm{josev4.ES512}
		}
	case ed25519.PublicKey:
		return []josev4.SignatureAlgorithm{josev4.EdDSA}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= 2048 && bits <= 8192 {
			return []josev4.SignatureAlgorithm{
				josev4.RS256, josev4.RS384, josev4.RS512, josev4.PS256, josev4.PS384, josev4.PS512,
			}
		}
	}
	return nil
}
