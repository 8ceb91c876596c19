package metric

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// A desc is what a metric is declared as.
type desc struct {
	name, help, kind string
	labels           []string
}

// A key is the values of all labels, the unused ones empty.
type key [maxLabels]string

// A family is a metric with its children, one for each combination of values.
type family[T any] struct {
	desc
	make func() *T

	mu       sync.RWMutex
	children map[key]*T // guarded by mu
}

func (f *family[T]) init(d desc, make func() *T) {
	d.labels = slices.Clone(d.labels)
	f.desc, f.make, f.children = d, make, map[key]*T{}
}

func (f *family[T]) describe() *desc { return &f.desc }

// child finds or makes the child of values, or the overflow child where there
// are too many. It does not allocate for a child that exists.
func (f *family[T]) child(values []string) *T {
	k := f.key(values)
	f.mu.RLock()
	c := f.children[k]
	f.mu.RUnlock()
	if c != nil {
		return c
	}
	for i := range values {
		k[i] = strings.ToValidUTF8(k[i], "\uFFFD")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.children[k]; !ok && len(f.children) >= maxChildren {
		for i := range values {
			k[i] = overflow
		}
	}
	if f.children[k] == nil {
		f.children[k] = f.make()
	}
	return f.children[k]
}

func (f *family[T]) key(values []string) (k key) {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("metric %s has %d labels, not %d", f.name, len(f.labels), len(values)))
	}
	copy(k[:], values)
	return k
}

// sorted is every child in order of its values.
func (f *family[T]) sorted() (keys []key, children []*T) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for k := range f.children {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		children = append(children, f.children[k])
	}
	return keys, children
}

// check panics where the declaration is malformed (Prometheus data model:
// metric names and labels).
func (d *desc) check() {
	if !validName(d.name, true) {
		panic(fmt.Sprintf("metric name %q is malformed", d.name))
	}
	if len(d.labels) > maxLabels {
		panic(fmt.Sprintf("metric %s has more than %d labels", d.name, maxLabels))
	}
	for i, l := range d.labels {
		if !validName(l, false) || strings.HasPrefix(l, "__") || l == "le" || slices.Contains(d.labels[:i], l) {
			panic(fmt.Sprintf("metric %s: label %q is malformed, reserved or there twice", d.name, l))
		}
	}
}

func validName(s string, colon bool) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || colon && c == ':'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func compare(a, b string) int { return cmp.Compare(a, b) }
