package xtest

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// pieceLength is how much of a secret is already too much.
const pieceLength = 12

// A Canary is a secret that must be nowhere, and finds itself in whatever form.
type Canary struct {
	Secret string
	forms  map[string][]byte
}

// NewCanary is a canary of at least 24 bytes.
func NewCanary(secret string) *Canary {
	c := &Canary{Secret: secret, forms: map[string][]byte{}}
	for i := 0; i+pieceLength <= len(secret); i++ {
		piece := secret[i : i+pieceLength]
		for name, form := range forms(piece) {
			c.forms[fmt.Sprintf("%s of its bytes from %d on", name, i)] = form
		}
	}
	return c
}

// forms are piece in each encoding in which it could turn up. In base64 and base32 a
// text begins at any of the places where a group can; those that are the same wherever
// the group began are looked for.
func forms(piece string) map[string][]byte {
	quoted, _ := json.Marshal(piece) // a string
	out := map[string][]byte{
		"text": []byte(piece), "upper case": []byte(strings.ToUpper(piece)), "lower case": []byte(strings.ToLower(piece)),
		"hex": []byte(hex.EncodeToString([]byte(piece))), "upper hex": []byte(strings.ToUpper(hex.EncodeToString([]byte(piece)))),
		"URL": []byte(url.QueryEscape(piece)), "path": []byte(url.PathEscape(piece)), "all of URL": []byte(percent(piece)),
		"JSON": quoted[1 : len(quoted)-1], "Go": []byte(strings.Trim(strconv.QuoteToASCII(piece), `"`)),
		"numbers": []byte(strings.Trim(fmt.Sprint([]byte(piece)), "[]")), "Go bytes": []byte(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(piece)), "[]byte{"), "}")),
		// What a goroutine dump has of a value in a register.
		"word": []byte(fmt.Sprintf("%#x", binary.LittleEndian.Uint64([]byte(piece)))),
	}
	for shift := range 3 {
		// Of a group of three bytes whose first ones are others', and of the last group.
		for name, e := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := e.EncodeToString([]byte(strings.Repeat("x", shift) + piece))
			out[fmt.Sprintf("%s shifted by %d", name, shift)] = []byte(text[(shift*8+5)/6 : len(text)-len(text)%4-2])
		}
	}
	for shift := range 5 {
		text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(strings.Repeat("x", shift) + piece))
		out[fmt.Sprintf("base32 shifted by %d", shift)] = []byte(text[(shift*8+4)/5 : len(text)-2])
	}
	return out
}

func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02x", s[i])
	}
	return b.String()
}

// In says in which form a piece of the canary is in data, "" where none is.
func (c *Canary) In(data []byte) string {
	for name, form := range c.forms {
		if i := bytes.Index(data, form); i >= 0 {
			return fmt.Sprintf("%s, at byte %d: %.120q", name, i, data[max(0, i-40):])
		}
	}
	return ""
}
