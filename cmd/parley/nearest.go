package main

// nearest is the candidate that s most likely stands for, "" where none is near:
// at most a third of its letters differ, or it continues what was typed.
func nearest(s string, candidates []string) string {
	best, at := "", max(len(s), 3)/3+1
	for _, c := range candidates {
		d := distance(s, c)
		if len(s) >= 3 && len(c) > len(s) && c[:len(s)] == s {
			d = 0
		}
		if d < at && d < len(c) {
			best, at = c, d
		}
	}
	return best
}

// distance is the optimal string alignment distance of two words: insertions,
// deletions, substitutions and swaps of neighbours.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
