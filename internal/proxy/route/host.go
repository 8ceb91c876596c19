package route

import (
	"net/http"
	"net/netip"
	"strings"
)

// CanonicalHost is the host of a Host field or :authority in lower case and
// without its port. Refused are an empty one, a trailing dot, which names the
// same host under another spelling, user information, and whatever is neither a
// name of letters, digits, hyphens and underscores nor an address.
func CanonicalHost(raw string) (string, error) {
	host, port, found := raw, "", false
	if strings.HasPrefix(raw, "[") {
		end := strings.IndexByte(raw, ']')
		if end < 0 {
			return "", badHost("the host has no closing bracket")
		}
		host = raw[:end+1]
		if rest := raw[end+1:]; rest != "" {
			if rest[0] != ':' {
				return "", badHost("the host has something behind its bracket")
			}
			port, found = rest[1:], true
		}
	} else {
		host, port, found = strings.Cut(raw, ":")
	}
	if found && !isPort(port) {
		return "", badHost("the host has a malformed port")
	}
	if strings.HasPrefix(host, "[") {
		addr, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", badHost("the host in brackets is no IPv6 address")
		}
		return "[" + addr.String() + "]", nil
	}
	return canonicalName(host)
}

func canonicalName(host string) (string, error) {
	switch {
	case host == "":
		return "", badHost("the request names no host")
	case len(host) > 253:
		return "", badHost("the host is longer than 253 bytes")
	case strings.HasSuffix(host, "."):
		return "", badHost("the host has a trailing dot")
	case host[0] == '.' || strings.Contains(host, ".."):
		return "", badHost("the host has an empty label")
	}
	for i := 0; i < len(host); i++ {
		if c := host[i]; !isAlnum(c) && c != '-' && c != '.' && c != '_' {
			return "", badHost("the host has a character that no host name has")
		}
	}
	return strings.ToLower(host), nil
}

func isPort(s string) bool {
	if s == "" || len(s) > 5 {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n > 0 && n <= 65535
}

func badHost(reason string) error {
	return &Refusal{Code: HostRefused, Status: http.StatusBadRequest, Reason: reason}
}
