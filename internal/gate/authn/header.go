package authn

import (
	"strings"

	"github.com/parleymesh/parley/internal/call"
)

// The header fields that may carry an API key, in canonical form.
const (
	apiKeyField        = "X-Api-Key"
	authorizationField = "Authorization"
)

// FromHeaders takes the API key out of a request: X-API-Key, or Authorization
// with the Bearer scheme (RFC 6750 section 2.1) and a token of a key's prefix.
// Other schemes and tokens are not ours and count as absent. The key is not
// checked yet.
//
// ErrSeveral is returned where a field stands there more than once or the two
// fields carry different keys: whoever picks one of them may pick another than
// the next reader of the request.
func FromHeaders(h call.Header) (key string, present bool, err error) {
	if h == nil {
		return "", false, nil
	}
	own, authorization := h.Values(apiKeyField), h.Values(authorizationField)
	if len(own) > 1 || len(authorization) > 1 {
		return "", false, ErrSeveral
	}
	if len(own) == 1 {
		key, present = own[0], true
	}
	if len(authorization) == 0 {
		return key, present, nil
	}
	token, ok := bearer(authorization[0])
	switch {
	case !ok || !isKey(token):
		return key, present, nil
	case present && token != key:
		return "", false, ErrSeveral
	}
	return token, true, nil
}

// isKey says that a bearer token claims to be an API key.
func isKey(token string) bool { return strings.HasPrefix(token, keyPrefix) }

// bearer is the token of a Bearer credential; the scheme is case-insensitive
// (RFC 9110 section 11.1).
func bearer(value string) (token string, ok bool) {
	scheme, token, ok := strings.Cut(value, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return "", false
	}
	return strings.TrimLeft(token, " "), true
}
