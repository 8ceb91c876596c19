package jose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/parleymesh/parley/internal/identity"
)

// TypeIdentity is the type of identity tokens, which no other token has (RFC 8725
// section 3.11).
const TypeIdentity = "parley-identity+jwt"

// Bounds of identity tokens.
const (
	// IdentityLife is how long one is good at most.
	IdentityLife = time.Minute
	// identitySkew is by how much the clocks of two hosts may differ.
	identitySkew = 30 * time.Second
	// roomyIdentity is the length up to which a token holds scopes. Applications
	// often have 8 KiB for the whole header.
	roomyIdentity = 4 << 10
)

// thumbprintField is the header parameter that names the leaf (RFC 7515 section
// 4.1.8).
const thumbprintField = "x5t#S256"

// Errors of SignIdentity, VerifyIdentity and Holds, besides ErrMalformed,
// ErrTooLong, ErrAlgorithm, ErrSignature, ErrIssuer, ErrAudience, ErrExpired and
// ErrNotYet. None repeats the token.
var (
	ErrIdentityHeader = errors.New("an identity token's header holds alg, typ and x5t#S256 only, alg being ES256 and typ " + TypeIdentity)
	ErrIdentityClaims = errors.New("an identity token has iss, sub, aud, iat, exp and api_key or jwt, and is good for a minute at most")
	ErrOtherLeaf      = errors.New("the identity token is signed for another certificate than that of the connection")
)

// An Identity is what an identity token says: that Issuer, a gateway, let Caller
// in, and tells Audience so.
type Identity struct {
	Issuer, Audience identity.ID
	Issued, Expires  time.Time
	// Caller has an API key, a Token, or both. Of the Token it has Issuer, Subject,
	// ClientID and Scopes.
	Caller identity.Caller
	// ScopesOmitted says that the caller has scopes that are not told, because they
	// were too long.
	ScopesOmitted bool
	// Revision is that of the mesh file by which the caller was let in.
	Revision int64
}

// identityClaims are what stands in the token. A key and a token are never mixed:
// the scopes of one say nothing about the other.
type identityClaims struct {
	Issuer   identity.ID  `json:"iss"`
	Subject  string       `json:"sub"`
	Audience identity.ID  `json:"aud"`
	Issued   int64        `json:"iat"`
	Expires  int64        `json:"exp"`
	Revision int64        `json:"revision,omitempty"`
	Key      *keyClaims   `json:"api_key,omitempty"`
	Token    *tokenClaims `json:"jwt,omitempty"`
	Omitted  bool         `json:"scopes_omitted,omitempty"`
}

type keyClaims struct {
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Scopes []string `json:"scopes,omitempty"`
}

type tokenClaims struct {
	Issuer   string   `json:"issuer"`
	Subject  string   `json:"subject"`
	ClientID string   `json:"client_id,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
}

// SignIdentity makes an identity token with the key of own, which is i's issuer.
// Times are cut to seconds. Scopes that would make it longer than 4096 bytes are
// left out, all of them, and the token says so.
//
// The key is the one that own's TLS handshakes use. The uses cannot be taken for
// each other: what is signed here is base64url text with one dot in it, which
// begins with "eyJ". TLS 1.3 signs what begins with 64 spaces (RFC 8446 section
// 4.4.3), TLS 1.2, which an edge speaks, what ends in the curve's parameters (RFC
// 8422 section 5.4), and X.509 signs DER: each of them has bytes that are not of
// that alphabet. A JWT of another kind is of another type.
func SignIdentity(own *identity.Credential, i *Identity) (string, error) {
	pub, ok := own.Key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return "", fmt.Errorf("sign an identity: %w", ErrAlgorithm)
	}
	c := identityClaims{
		Issuer: i.Issuer, Subject: subjectOf(&i.Caller), Audience: i.Audience,
		Issued: i.Issued.Unix(), Expires: i.Expires.Unix(), Revision: i.Revision, Omitted: i.ScopesOmitted,
	}
	if i.Caller.KeyID != "" {
		c.Key = &keyClaims{i.Caller.KeyID, i.Caller.KeyName, i.Caller.Scopes}
	}
	if t := i.Caller.Token; t != nil {
		c.Token = &tokenClaims{t.Issuer, t.Subject, t.ClientID, t.Scopes}
	}
	life := c.Expires - c.Issued
	if c.Key == nil && c.Token == nil || i.Issuer != own.ID || i.Audience.Path() == "" || life <= 0 || life > int64(IdentityLife/time.Second) {
		return "", fmt.Errorf("sign an identity: %w", ErrIdentityClaims)
	}
	payload, err := c.encode()
	if err != nil {
		return "", fmt.Errorf("sign an identity: %w", err)
	}
	token, err := signIdentity(own, payload)
	if err != nil {
		return "", fmt.Errorf("sign an identity: %w", err)
	}
	return token, nil
}

// encode leaves characters as they are that only HTML minds: as escapes they are
// six times as long.
func (c *identityClaims) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(c); err != nil {
		return nil, err
	}
	const rest = 256 // of the token: its header and signature
	if base64.RawURLEncoding.EncodedLen(b.Len())+rest <= roomyIdentity || c.Omitted {
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
	}
	c.Omitted = true
	if c.Key != nil {
		c.Key.Scopes = nil
	}
	if c.Token != nil {
		c.Token.Scopes = nil
	}
	return c.encode()
}

func signIdentity(own *identity.Credential, payload []byte) (string, error) {
	sum := own.Thumbprint()
	opts := new(josev4.SignerOptions).WithType(TypeIdentity).
		WithHeader(thumbprintField, base64.RawURLEncoding.EncodeToString(sum[:]))
	signer, err := josev4.NewSigner(josev4.SigningKey{Algorithm: josev4.ES256, Key: cryptosigner.Opaque(own.Key)}, opts)
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
	return token, err
}

// subjectOf is a name that is one within the gateway, as sub has to be (RFC 7519
// section 4.1.2): two issuers may both know an alice. An issuer has no fragment
// (RFC 8414 section 2), and begins with https.
func subjectOf(c *identity.Caller) string {
	if c.Token != nil {
		return c.Token.Issuer + "#" + c.Token.Subject
	}
	return "api_key:" + c.KeyID
}

// VerifyIdentity says what an identity token says that is signed with the key of
// leaf. leaf is the verified certificate of the connection that the token came
// over: nobody but its holder can have made the token, and nobody else can bring
// it. Whom it is for, and whether it is in time, is for Holds.
func VerifyIdentity(token string, leaf *x509.Certificate) (*Identity, error) {
	head, _, err := split(token)
	if err != nil {
		return nil, err
	}
	if err := identityHeader(head, leaf); err != nil {
		return nil, err
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, ErrAlgorithm
	}
	payload, err := verify(token, josev4.ES256, crypto.PublicKey(pub))
	if err != nil {
		return nil, err
	}
	return readIdentity(payload)
}

// ReadIdentity says what an identity token says, and verifies nothing: it is for
// those whom only somebody reaches who has verified it.
func ReadIdentity(token string) (*Identity, error) {
	_, payload, err := split(token)
	if err != nil {
		return nil, err
	}
	return readIdentity(payload)
}

// Subject is the token's sub: a name of the caller that no other caller has.
func (i *Identity) Subject() string { return subjectOf(&i.Caller) }

func identityHeader(head []byte, leaf *x509.Certificate) error {
	fields, err := object(head)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIdentityHeader, err)
	}
	var alg, typ, thumbprint string
	for name, to := range map[string]*string{"alg": &alg, "typ": &typ, thumbprintField: &thumbprint} {
		if *to, err = optional(fields, name); err != nil {
			return ErrIdentityHeader
		}
	}
	sum := sha256.Sum256(leaf.Raw)
	switch {
	case len(fields) != 3, typ != TypeIdentity:
		return ErrIdentityHeader
	case alg != string(josev4.ES256):
		return ErrAlgorithm
	case thumbprint != base64.RawURLEncoding.EncodeToString(sum[:]):
		return ErrOtherLeaf
	}
	return nil
}

// readIdentity reads verified claims. Claims that are not known are passed over:
// a newer gateway may have more to say.
func readIdentity(payload []byte) (*Identity, error) {
	fields, err := object(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentityClaims, err)
	}
	i := &Identity{}
	for name, to := range map[string]*identity.ID{"iss": &i.Issuer, "aud": &i.Audience} {
		text, err := optional(fields, name)
		if err == nil {
			*to, err = identity.ParseID(text)
		}
		if err != nil || to.Path() == "" {
			return nil, fmt.Errorf("%w: %s", ErrIdentityClaims, name)
		}
	}
	for name, to := range map[string]*time.Time{"iat": &i.Issued, "exp": &i.Expires} {
		if *to, err = numericDate(fields[name]); err != nil {
			return nil, fmt.Errorf("%w: %s", ErrIdentityClaims, name)
		}
	}
	if life := i.Expires.Sub(i.Issued); life <= 0 || life > IdentityLife {
		return nil, fmt.Errorf("%w: exp", ErrIdentityClaims)
	}
	if err := i.readCaller(fields); err != nil {
		return nil, err
	}
	sub, err := optional(fields, "sub")
	if err != nil || sub != subjectOf(&i.Caller) {
		return nil, fmt.Errorf("%w: sub", ErrIdentityClaims)
	}
	if raw, ok := fields["revision"]; ok && (json.Unmarshal(raw, &i.Revision) != nil || i.Revision <= 0 || i.Revision == math.MaxInt64) {
		return nil, fmt.Errorf("%w: revision", ErrIdentityClaims)
	}
	if raw, ok := fields["scopes_omitted"]; ok && (json.Unmarshal(raw, &i.ScopesOmitted) != nil || !i.ScopesOmitted) {
		return nil, fmt.Errorf("%w: scopes_omitted", ErrIdentityClaims)
	}
	return i, nil
}

// readCaller reads api_key and jwt, of which one has to be there.
func (i *Identity) readCaller(fields map[string]json.RawMessage) (err error) {
	key, hasKey := fields["api_key"]
	if hasKey {
		c := &i.Caller
		c.Scopes, err = facts(key, fact{"id", &c.KeyID, true}, fact{"name", &c.KeyName, false})
		if err != nil {
			return fmt.Errorf("%w: api_key", ErrIdentityClaims)
		}
	}
	token, hasToken := fields["jwt"]
	if hasToken {
		t := &identity.Token{Expires: i.Expires}
		t.Scopes, err = facts(token, fact{"issuer", &t.Issuer, true}, fact{"subject", &t.Subject, true}, fact{"client_id", &t.ClientID, false})
		if err != nil {
			return fmt.Errorf("%w: jwt", ErrIdentityClaims)
		}
		i.Caller.Token = t
	}
	if !hasKey && !hasToken {
		return fmt.Errorf("%w: neither api_key nor jwt", ErrIdentityClaims)
	}
	return nil
}

// A fact is a member of an object that is text.
type fact struct {
	name string
	to   *string
	must bool
}

// facts reads an object of facts and scopes.
func facts(raw []byte, want ...fact) (scopes []string, err error) {
	fields, err := object(raw)
	if err != nil {
		return nil, err
	}
	for _, f := range want {
		if *f.to, err = optional(fields, f.name); err != nil || !named(*f.to, f.must) {
			return nil, ErrIdentityClaims
		}
	}
	list, ok := fields["scopes"]
	if !ok {
		return nil, nil
	}
	return texts(list)
}

// Holds says whether i is from's, for to, and in time at now.
func (i *Identity) Holds(from, to identity.ID, now time.Time) error {
	switch {
	case i.Issuer != from:
		return ErrIssuer
	case i.Audience != to:
		return ErrAudience
	case now.Before(i.Issued.Add(-identitySkew)):
		return ErrNotYet
	case !now.Before(i.Expires.Add(identitySkew)):
		return ErrExpired
	}
	return nil
}

// Size is about how many bytes i takes.
func (i *Identity) Size() int {
	n := 256 + len(i.Issuer.String()) + len(i.Audience.String()) + len(i.Caller.KeyID) + len(i.Caller.KeyName) + sizeOf(i.Caller.Scopes)
	if t := i.Caller.Token; t != nil {
		n += 128 + len(t.Issuer) + len(t.Subject) + len(t.ClientID) + sizeOf(t.Scopes)
	}
	return n
}
