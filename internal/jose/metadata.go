package jose

import (
	"errors"
	"fmt"
)

// ErrMetadata is what every error of ReadMetadata wraps.
var ErrMetadata = errors.New("not the metadata of this issuer")

// ReadMetadata is the jwks_uri of an issuer's metadata (OpenID Connect Discovery
// section 3, RFC 8414 section 2). Its issuer must be the very one that was asked
// for, or the document is another's (RFC 8414 section 3.3).
func ReadMetadata(data []byte, issuer string) (jwksURI string, err error) {
	fields, err := object(data)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	if said, err := optional(fields, "issuer"); err != nil || said != issuer {
		return "", fmt.Errorf("%w: it is of %.200q", ErrMetadata, said)
	}
	if jwksURI, err = optional(fields, "jwks_uri"); err != nil || jwksURI == "" {
		return "", fmt.Errorf("%w: it has no jwks_uri", ErrMetadata)
	}
	return jwksURI, nil
}
