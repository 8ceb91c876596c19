package audit

// Known is how many kinds t tells apart.
func Known[K comparable](t *Throttle[K]) int { return len(t.known) }

// Both ways to read a body.
var (
	Read     = read
	ReadJSON = readJSON
)

// Wipe wipes a body in place, and returns its committed bytes.
func Wipe(body []byte) []byte {
	end, private := committedEnd(body)
	if !private {
		return body[:end]
	}
	return wipeCanonical(body, end)[:end+1]
}
