package authn

import "strings"

// redacted stands in the place of an API key in what is recorded.
const redacted = keyPrefix + "redacted"

// Redact is s with every API key, or beginning of one, made unusable: people put
// keys where they do not belong, and a log is read by more than may use them.
func Redact(s string) string {
	if !strings.Contains(s, keyPrefix) {
		return s
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, keyPrefix)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString(redacted)
		s = strings.TrimLeft(after, digits+"_")
	}
}
