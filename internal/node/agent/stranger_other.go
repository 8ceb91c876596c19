//go:build !linux

package agent

// asStranger runs f as this process's own user.
func asStranger(f func()) (became bool) {
	f()
	return false
}
