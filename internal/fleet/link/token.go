package link

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// tokenMark begins every join token; people and scanners know it by that.
const tokenMark = "parley_join_"

// The bounds of a join token, in bytes and addresses.
const (
	maxToken     = 4096
	maxAddresses = 16
	secretSize   = 32
	idSize       = 32 // as text
	hostSize     = 63 // at most
)

// A Token is a join token: where the server is, how it is known, and the secret
// that is good for one join. Whoever has it can become the host that it names,
// until it is used or expires.
type Token struct {
	// Addresses are host:port of servers, in the order to try them.
	Addresses   []string
	TrustDomain identity.TrustDomain
	// Pin is that of the trust domain's root: mtls.Pin.
	Pin [32]byte
	// ID and Secret are the registrar's.
	ID      string
	Secret  []byte
	Host    string
	Expires time.Time
}

// wireToken is the JSON inside.
type wireToken struct {
	Version   int      `json:"v"`
	Addresses []string `json:"a"`
	Domain    string   `json:"d"`
	Pin       []byte   `json:"p"`
	ID        string   `json:"i"`
	Secret    []byte   `json:"s"`
	Host      string   `json:"h"`
	Expires   int64    `json:"e"`
}

// String is the token as one word that is shown once. Do not log it.
func (t Token) String() string {
	// Nothing in it can fail to marshal.
	data, _ := json.Marshal(wireToken{
		Version: 1, Addresses: t.Addresses, Domain: t.TrustDomain.String(), Pin: t.Pin[:],
		ID: t.ID, Secret: t.Secret, Host: t.Host, Expires: t.Expires.Unix(),
	})
	return tokenMark + base64.RawURLEncoding.EncodeToString(data)
}

// Check is why ParseToken would refuse what String makes of t for its addresses, of
// which a token holds only so many, nil where it would not, whatever its host, ID
// and secret are.
func (t Token) Check() error {
	t.Host, t.ID, t.Secret = strings.Repeat("h", hostSize), strings.Repeat("0", idSize), make([]byte, secretSize)
	size := len(t.String())
	switch {
	case len(t.Addresses) > maxAddresses:
		return fault.New(fault.BadRequest, fewer, "this server has %d addresses, and a join token holds %d", len(t.Addresses), maxAddresses)
	case size > maxToken:
		return fault.New(fault.BadRequest, fewer, "with the addresses of this server a join token is %d bytes long, and the limit is %d", size, maxToken)
	}
	return nil
}

const fewer = "start the server with fewer or shorter ones: parley server --advertise HOST:PORT"

// LogValue implements slog.LogValuer: no log has the secret.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", t.ID), slog.String("host", t.Host), slog.Time("expires", t.Expires))
}

var errToken = errors.New("not a join token")

// ParseToken reads what String made. The error is a fault that repeats nothing of
// the token.
func ParseToken(s string) (Token, error) {
	t, err := parseToken(strings.TrimSpace(s))
	if err != nil {
		return Token{}, fault.New(fault.JoinToken, "make one where the server runs: parley join-token HOST",
			"this is no join token: it begins with %s and is one word, copied whole", tokenMark)
	}
	return t, nil
}

func parseToken(s string) (Token, error) {
	text, ok := strings.CutPrefix(s, tokenMark)
	if !ok || len(s) > maxToken {
		return Token{}, errToken
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Token{}, errToken
	}
	var w wireToken
	if err := decodeStrict(data, &w); err != nil || w.Version != 1 {
		return Token{}, errToken
	}
	td, err := identity.ParseTrustDomain(w.Domain)
	if err != nil || len(w.Pin) != 32 || len(w.Secret) != secretSize || w.ID == "" || len(w.Addresses) == 0 || len(w.Addresses) > maxAddresses {
		return Token{}, errToken
	}
	if _, err := identity.AgentID(td, w.Host); err != nil || strings.Contains(w.Host, "/") {
		return Token{}, errToken
	}
	for _, a := range w.Addresses {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return Token{}, errToken
		}
	}
	return Token{
		Addresses: w.Addresses, TrustDomain: td, Pin: [32]byte(w.Pin), ID: w.ID, Secret: w.Secret, Host: w.Host,
		Expires: time.Unix(w.Expires, 0).UTC(),
	}, nil
}
