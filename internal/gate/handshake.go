package gate

import (
	"crypto/tls"
	"errors"
	"os"
	"strings"

	"github.com/parleymesh/parley/internal/identity"
)

// byIdentity are the reasons of a handshake that identity's rules ended.
var byIdentity = []struct {
	err    error
	reason string
}{
	{identity.ErrBanned, ReasonBanned},
	{identity.ErrNotMember, ReasonNotMember},
	{identity.ErrExpired, ReasonExpired},
	{identity.ErrNotYetValid, "credential_not_yet_valid"},
	{identity.ErrUntrustedDomain, "untrusted_domain"},
	{identity.ErrChain, "chain_untrusted"},
	{identity.ErrChainTooLong, "chain_too_long"},
	{identity.ErrNoCredential, ReasonNoIdentity},
	{identity.ErrURICount, ReasonMalformedSVID},
	{identity.ErrLeafIsCA, ReasonMalformedSVID},
	{identity.ErrLeafUsage, ReasonMalformedSVID},
	{identity.ErrLeafNoPath, ReasonMalformedSVID},
	{identity.ErrLeafEKU, ReasonMalformedSVID},
	{identity.ErrSigner, ReasonMalformedSVID},
	{identity.ErrProbe, ReasonProbe},
	{identity.ErrNoProbe, ReasonProbe},
}

// byText are reasons that crypto/tls has only sentences for; a test holds them
// to what it says.
var byText = []struct{ text, reason string }{
	{"didn't provide a certificate", ReasonNoCertificate},
	{"unsupported versions", ReasonTLSVersion},
}

// handshakeReason is why a TLS peer was not admitted, as precisely as err says.
func handshakeReason(err error) string {
	for _, r := range byIdentity {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	var record tls.RecordHeaderError
	switch {
	case err == nil:
		return CodeHandshakeRefused
	case errors.As(err, &record):
		return ReasonPlaintext
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ReasonSlowHandshake
	}
	for _, r := range byText {
		if strings.Contains(err.Error(), r.text) {
			return r.reason
		}
	}
	return CodeHandshakeRefused
}
