package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"math/big"
	"slices"
)

// checkKey holds a key against the profile's rules and against what makes a key worthless under any.
func (p *Profile) checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if p.minRSABits == 0 {
			return &PolicyError{"keys.rsa", "RSA keys"}
		}
		if bits := k.N.BitLen(); bits < p.minRSABits {
			return &PolicyError{"keys.rsa.min_bits", fmt.Sprintf("RSA of %d bits", bits)}
		}
		if weakness := rsaWeakness(k); weakness != "" {
			return &PolicyError{"keys.weak", weakness}
		}
		return nil
	case *ecdsa.PublicKey:
		if !slices.Contains(p.curves, k.Curve) {
			return &PolicyError{"keys.ecdsa", "curve " + k.Curve.Params().Name}
		}
		if _, err := k.ECDH(); err != nil { // nothing else of it looks at the point
			return &PolicyError{"keys.weak", "ECDSA key whose point is not on " + k.Curve.Params().Name}
		}
		return nil
	}
	return &PolicyError{"keys", keyKind(key)}
}

// keyKind names the kind of a key for people.
func keyKind(key crypto.PublicKey) string {
	switch key.(type) {
	case *rsa.PublicKey:
		return "RSA keys"
	case *ecdsa.PublicKey:
		return "ECDSA keys"
	case ed25519.PublicKey:
		return "Ed25519 keys"
	}
	return "keys of this kind"
}

// rsaWeakness says what makes an RSA key of any size worthless, or "". The bounds are those of the
// CA/Browser Forum Baseline Requirements §6.1.6, the exponent's as that section recommends it.
func rsaWeakness(k *rsa.PublicKey) string {
	if k.E < 1<<16+1 || k.E%2 == 0 {
		return fmt.Sprintf("RSA exponent %d (65537 or more, and odd)", k.E)
	}
	if hasSmallFactor(k.N) {
		return "RSA modulus with a small factor"
	}
	if hasROCAFingerprint(k.N) {
		return "RSA key made by a defective Infineon library (ROCA, CVE-2017-15361)"
	}
	if hasClosePrimes(k.N) {
		return "RSA modulus of two primes close to each other (CVE-2022-26320)"
	}
	return ""
}

// hasSmallFactor reports whether a prime below 752 divides n.
func hasSmallFactor(n *big.Int) bool {
	return new(big.Int).GCD(nil, nil, n, smallPrimes).BitLen() > 1
}

// smallPrimes is the product of the primes below 752.
var smallPrimes = func() *big.Int {
	product := big.NewInt(2)
	for n := int64(3); n < 752; n += 2 {
		if factor := big.NewInt(n); factor.ProbablyPrime(0) {
			product.Mul(product, factor)
		}
	}
	return product
}()

// hasROCAFingerprint reports whether n is, modulo each of the primes from 3 to 167, a power of
// 65537 (Nemec et al., "The Return of Coppersmith's Attack", CCS 2017 §2.3). A sound modulus is one
// with a probability of about 2^-27 (and less with the primes whose subgroup is everything left in).
func hasROCAFingerprint(n *big.Int) bool {
	for prime := int64(3); prime <= 167; prime += 2 {
		if !big.NewInt(prime).ProbablyPrime(0) {
			continue
		}
		residue := new(big.Int).Mod(n, big.NewInt(prime)).Int64()
		power, found := int64(1), false
		for range prime {
			if power == residue {
				found = true
				break
			}
			power = power * 65537 % prime
		}
		if !found {
			return false
		}
	}
	return true
}

// fermatRounds is how far apart two primes may be and still be found: the Baseline Requirements §6.1.1.3
// ask for a hundred rounds. The primes of a sound key of 2048 bits are some 2^820 rounds apart, by the
// distance FIPS 186-5 appendix A.1.3 keeps between them.
const fermatRounds = 100

// hasClosePrimes reports whether a few rounds of Fermat's method factor an odd n: whether n is a² - b² for
// an a just above its square root.
func hasClosePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	rest := new(big.Int).Mul(a, a)
	if rest.Sub(rest, n).Sign() == 0 {
		return true
	}
	step := new(big.Int).Lsh(a, 1) // (a+1)² - a², then two more each round
	two, root := big.NewInt(2), new(big.Int)
	step.Add(step, big.NewInt(1))
	for range fermatRounds {
		rest.Add(rest, step)
		step.Add(step, two)
		// Four in five are no squares by their last six bits.
		if !isSquareMod64(rest.Bits()) {
			continue
		}
		if root.Sqrt(rest); root.Mul(root, root).Cmp(rest) == 0 {
			return true
		}
	}
	return false
}

// isSquareMod64 looks at the last six bits of a number, which are those of a square in 12 cases of 64.
func isSquareMod64(words []big.Word) bool {
	if len(words) == 0 {
		return true
	}
	last := words[0] & 63
	for i := big.Word(0); i <= 32; i++ {
		if i*i&63 == last {
			return true
		}
	}
	return false
}
