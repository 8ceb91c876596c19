package jose

import (
	"math/big"
	"sync"
)

// smallPrimes are those that the fingerprint of ROCA is over, whatever the length
// of the key.
var smallPrimes = []uint64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113,
	127, 131, 137, 139, 149, 151, 157, 163, 167,
}

// powers are, for each small prime, the powers of 65537 modulo it.
var powers = sync.OnceValue(func() []map[uint64]bool {
	out := make([]map[uint64]bool, len(smallPrimes))
	for i, p := range smallPrimes {
		out[i] = map[uint64]bool{}
		for x := uint64(1); !out[i][x]; x = x * 65537 % p {
			out[i][x] = true
		}
	}
	return out
})

// weakModulus says whether an RSA modulus has a small factor, or the fingerprint
// of a library whose primes were k*M + 65537^a mod M: such a modulus is a power
// of 65537 modulo every small prime, and can be factored (Nemec, Sys et al., The
// Return of Coppersmith's Attack, 2017, section 2; CVE-2017-15361). One of another
// origin has it by chance about once in a hundred million.
func weakModulus(n *big.Int) bool {
	if n.Bit(0) == 0 {
		return true
	}
	fingerprint := true
	var prime, rest big.Int
	for i, p := range smallPrimes {
		r := rest.Mod(n, prime.SetUint64(p)).Uint64()
		if r == 0 {
			return true
		}
		fingerprint = fingerprint && powers()[i][r]
	}
	return fingerprint
}
