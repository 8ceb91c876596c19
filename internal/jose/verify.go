package jose

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	josev4 "github.com/go-jose/go-jose/v4"

	"github.com/parleymesh/parley/internal/identity"
)

// VerifySVID checks a JWT-SVID that was presented to audience at now and returns
// its subject and all its claims. bundle gives the bundle of a trust domain, nil
// where there is none; only the bundle of sub's own trust domain counts, and a
// token without a kid is refused. There is no leeway on exp and nbf.
func VerifySVID(token, audience string, bundle func(identity.TrustDomain) *identity.Bundle, now time.Time) (identity.ID, map[string]any, error) {
	head, claimed, err := split(token)
	if err != nil {
		return identity.ID{}, nil, err
	}
	kid, alg, err := readHeader(head)
	if err != nil {
		return identity.ID{}, nil, err
	}
	// The unverified sub says only whose keys to try.
	id, err := subject(claimed)
	if err != nil {
		return identity.ID{}, nil, err
	}
	pub, err := findKey(bundle(id.TrustDomain()), id.TrustDomain(), kid)
	if err != nil {
		return identity.ID{}, nil, err
	}
	if svidAlgorithms(pub) == nil {
		return identity.ID{}, nil, ErrWeakKey
	}
	verified, err := verify(token, alg, pub)
	if err != nil {
		return identity.ID{}, nil, err
	}
	// From here on only the bytes that the signature covers are read.
	return readClaims(verified, audience, now)
}

// split decodes the first two parts of a compact JWS. It admits the base64url
// alphabet only: the library, like encoding/base64, passes over line breaks and
// left-over bits, which would give one token many spellings.
func split(token string) (head, payload []byte, err error) {
	if len(token) > maxToken {
		return nil, nil, ErrTooLong
	}
	if strings.Count(token, ".") != 2 {
		return nil, nil, ErrMalformed
	}
	var parts [3][]byte
	for i, part := range strings.Split(token, ".") {
		var ok bool
		if parts[i], ok = decode64(part); !ok {
			return nil, nil, ErrMalformed
		}
	}
	return parts[0], parts[1], nil
}

// readHeader admits alg, kid and typ only (JWT-SVID.md section 2).
func readHeader(head []byte) (kid string, alg josev4.SignatureAlgorithm, err error) {
	fields, err := object(head)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrHeader, err)
	}
	for name, value := range fields {
		var s string
		if value[0] != '"' || json.Unmarshal(value, &s) != nil {
			return "", "", ErrHeader
		}
		switch {
		case name == "alg":
			alg = josev4.SignatureAlgorithm(s)
		case name == "kid":
			kid = s
		case name == "typ" && (s == "JWT" || s == "JOSE"):
		default:
			return "", "", ErrHeader
		}
	}
	return kid, alg, nil
}

func findKey(b *identity.Bundle, td identity.TrustDomain, kid string) (crypto.PublicKey, error) {
	if b == nil || b.TrustDomain != td {
		return nil, fmt.Errorf("%s: %w", td, ErrUntrusted)
	}
	pub := b.JWTKeys[kid]
	if kid == "" || pub == nil {
		return nil, fmt.Errorf("%s: %w", td, ErrKey)
	}
	return pub, nil
}

// verify returns the payload that the signature covers.
func verify(token string, alg josev4.SignatureAlgorithm, pub crypto.PublicKey) ([]byte, error) {
	admitted := algorithms(pub)
	if admitted == nil {
		return nil, ErrWeakKey
	}
	if !slices.Contains(admitted, alg) {
		return nil, ErrAlgorithm
	}
	jws, err := josev4.ParseSignedCompact(token, []josev4.SignatureAlgorithm{alg})
	if err != nil {
		return nil, ErrMalformed
	}
	payload, err := jws.Verify(pub)
	if err != nil || !saltLength(token, alg, pub) {
		return nil, ErrSignature
	}
	return payload, nil
}

// saltLength says whether an RSASSA-PSS signature has a salt as long as its hash
// (RFC 7518 section 3.5); the library takes any length.
func saltLength(token string, alg josev4.SignatureAlgorithm, pub crypto.PublicKey) bool {
	hash, ok := map[josev4.SignatureAlgorithm]crypto.Hash{
		josev4.PS256: crypto.SHA256, josev4.PS384: crypto.SHA384, josev4.PS512: crypto.SHA512,
	}[alg]
	if !ok {
		return true
	}
	dot := strings.LastIndexByte(token, '.')
	sig, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil {
		return false
	}
	h := hash.New()
	h.Write([]byte(token[:dot]))
	return rsa.VerifyPSS(pub.(*rsa.PublicKey), hash, h.Sum(nil), sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
}

// readClaims applies JWT-SVID.md section 3 and RFC 7519 section 4.1.
func readClaims(payload []byte, audience string, now time.Time) (identity.ID, map[string]any, error) {
	id, err := subject(payload)
	if err != nil {
		return identity.ID{}, nil, err
	}
	fields, err := object(payload)
	if err != nil {
		return identity.ID{}, nil, ErrClaims
	}
	if err := checkTimes(fields, now); err != nil {
		return identity.ID{}, nil, err
	}
	list, err := audiences(fields["aud"])
	if err != nil {
		return identity.ID{}, nil, err
	}
	if audience == "" || !slices.Contains(list, audience) {
		return identity.ID{}, nil, ErrAudience
	}
	var all map[string]any
	if err := json.Unmarshal(payload, &all); err != nil {
		return identity.ID{}, nil, ErrClaims
	}
	return id, all, nil
}

// subject is the sub claim, which is a workload's ID.
func subject(payload []byte) (identity.ID, error) {
	fields, err := object(payload)
	if err != nil {
		return identity.ID{}, fmt.Errorf("%w: %w", ErrClaims, err)
	}
	var sub string
	if json.Unmarshal(fields["sub"], &sub) != nil {
		return identity.ID{}, ErrClaims
	}
	id, err := identity.ParseID(sub)
	if err == nil && id.Path() == "" {
		err = identity.ErrNoPath
	}
	if err != nil {
		return identity.ID{}, fmt.Errorf("%w: %w", ErrClaims, err)
	}
	return id, nil
}

// audiences reads a string or an array of strings, empty for neither.
func audiences(raw json.RawMessage) ([]string, error) {
	var one *string
	if json.Unmarshal(raw, &one) == nil && one != nil {
		return []string{*one}, nil
	}
	var many []*string
	if json.Unmarshal(raw, &many) != nil || len(many) == 0 || slices.Contains(many, nil) {
		return nil, ErrClaims
	}
	list := make([]string, len(many))
	for i, s := range many {
		list[i] = *s
	}
	return list, nil
}

func checkTimes(fields map[string]json.RawMessage, now time.Time) error {
	expires, err := numericDate(fields["exp"])
	if err != nil {
		return err
	}
	if !now.Before(expires) {
		return ErrExpired
	}
	if raw, ok := fields["nbf"]; ok {
		begins, err := numericDate(raw)
		if err != nil {
			return err
		}
		if now.Before(begins) {
			return ErrNotYet
		}
	}
	return nil
}

// lastDate is the end of the year 9999, in seconds since 1970.
const lastDate = 253402300799

// numericDate is a JSON number of seconds since 1970 (RFC 7519 section 2).
// Fractions are cut off, which is never later than what was meant.
func numericDate(raw json.RawMessage) (time.Time, error) {
	var seconds *float64
	if json.Unmarshal(raw, &seconds) != nil || seconds == nil || *seconds < 0 || *seconds > lastDate {
		return time.Time{}, ErrClaims
	}
	return time.Unix(int64(math.Floor(*seconds)), 0), nil
}

// object reads one JSON object and nothing behind it. A name that comes twice is
// an error: readers disagree on which value counts (RFC 8259 section 4).
func object(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("not a JSON object")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("not a JSON object")
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("a name comes twice")
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON object")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return fields, nil
}
