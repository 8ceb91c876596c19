package link

import "testing"

// SealUpdate keeps v as if it were an update.
func SealUpdate(tb testing.TB, s *State, v any) {
	tb.Helper()
	if err := s.seal(updateFile, updateSeal, v); err != nil {
		tb.Fatal(err)
	}
}
