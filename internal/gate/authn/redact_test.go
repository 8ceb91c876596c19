package authn_test

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/gate/authn"
)

func TestRedact(t *testing.T) {
	t.Parallel()
	key, _, err := authn.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":                                  "",
		"/orders/7":                         "/orders/7",
		"/k/" + key:                         "/k/parley_key_redacted",
		"/k/" + key + "/x/" + key + "/y":    "/k/parley_key_redacted/x/parley_key_redacted/y",
		"/k/" + key[:40]:                    "/k/parley_key_redacted",
		"parley_key_parley_key_parley_key_": "parley_key_redacted",
	} {
		if got := authn.Redact(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := authn.Redact("/k/" + key); strings.Contains(got, key[30:40]) {
		t.Errorf("a part of the key is left: %q", got)
	}
}
