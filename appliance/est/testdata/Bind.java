// Binds requests to their TLS 1.2 connection by Bouncy Castle's ESTService, and has keys made:
// java -cp bcpkix.jar:bcprov.jar:bcutil.jar:bctls.jar Bind HOST:PORT CA.pem USER PASSWORD OWN.pem SEALED.der
//
// Its version 1.72 exports nothing of a TLS 1.3 connection that stands, so there it binds nothing.
// OWN.pem is a certificate that a key is to be encrypted to; the request that asks for that is written to SEALED.der.

import java.io.ByteArrayOutputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.SecureRandom;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.Arrays;
import java.util.Collections;

import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.DEROctetString;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.asn1.x509.SubjectKeyIdentifier;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateHolder;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequestBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

public class Bind {
    static String host;
    static X509Certificate ca;
    static ESTAuth auth;
    static KeyPair key;

    // service has Bouncy Castle's TLS tell what a connection is known by; a wrong one is that of a connection somewhere else.
    static ESTService service(String label, final boolean isWrong) throws Exception {
        return new JsseESTServiceBuilder(host, JcaJceUtils.getCertPathTrustManager(Collections.singleton(new TrustAnchor(ca, null)), null))
            .withProvider("BCJSSE").withTLSVersion("TLSv1.2").withFilterCipherSuites(false)
            .withChannelBindingProvider(new ChannelBindingProvider() {
                public boolean canAccessChannelBinding(Socket socket) {
                    return socket instanceof BCSSLSocket;
                }

                public byte[] getChannelBinding(Socket socket, String binding) {
                    byte[] b = ((BCSSLSocket)socket).getConnection().getChannelBinding(binding);
                    if (isWrong) {
                        b[0] ^= 1;
                    }
                    return b;
                }
            }).withLabel(label).build();
    }

    static PKCS10CertificationRequestBuilder request(String cn) {
        return new JcaPKCS10CertificationRequestBuilder(new X500Name("CN=" + cn), key.getPublic());
    }

    static ContentSigner signer() throws Exception {
        return new JcaContentSignerBuilder("SHA256WITHECDSA").build(key.getPrivate());
    }

    // zeros signs nothing.
    static ContentSigner zeros() throws Exception {
        final AlgorithmIdentifier algorithm = signer().getAlgorithmIdentifier();
        return new ContentSigner() {
            public AlgorithmIdentifier getAlgorithmIdentifier() {
                return algorithm;
            }

            public OutputStream getOutputStream() {
                return new ByteArrayOutputStream();
            }

            public byte[] getSignature() {
                return new byte[70];
            }
        };
    }

    static X509CertificateHolder only(EnrollmentResponse r) throws Exception {
        if (r.getStore().getMatches(null).size() != 1) {
            throw new Exception("not exactly one certificate");
        }
        return r.getStore().getMatches(null).iterator().next();
    }

    interface Call {
        EnrollmentResponse call() throws Exception;
    }

    static void refused(String what, Call c) throws Exception {
        try {
            c.call();
            System.out.println(what + ": issued");
        } catch (ESTException e) {
            System.out.println(what + ": refused " + e.getStatusCode());
        }
    }

    // made checks that the private key of an answer is the certificate's, and not the one in the request.
    static void made(String what, EnrollmentResponse r) throws Exception {
        X509CertificateHolder certificate = only(r);
        java.security.Signature s = java.security.Signature.getInstance("SHA256WITHECDSA");
        s.initSign(new JcaPEMKeyConverter().getPrivateKey(r.getPrivateKeyInfo()));
        s.update(new byte[]{1});
        byte[] signature = s.sign();
        s.initVerify(new JcaPEMKeyConverter().getPublicKey(certificate.getSubjectPublicKeyInfo()));
        s.update(new byte[]{1});
        boolean isOwn = Arrays.equals(certificate.getSubjectPublicKeyInfo().getEncoded(), key.getPublic().getEncoded());
        System.out.println(what + ": " + certificate.getSubject() + (s.verify(signature) && !isOwn ? " with its new key" : " with another key"));
    }

    public static void main(String[] args) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        Security.addProvider(new BouncyCastleJsseProvider());
        host = args[0];
        ca = (X509Certificate)CertificateFactory.getInstance("X.509").generateCertificate(Files.newInputStream(Paths.get(args[1])));
        auth = new JcaHttpAuthBuilder(null, args[2], args[3].toCharArray()).setNonceGenerator(new SecureRandom()).build();
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(256);
        key = generator.generateKeyPair();

        final ESTService bound = service("bound", false), elsewhere = service("bound", true), free = service("keys", false);
        System.out.println("asked to bind: " + bound.getCSRAttributes().getAttributesResponse().hasRequirement(new ASN1ObjectIdentifier("1.2.840.113549.1.9.7")));
        System.out.println("not asked: " + free.getCSRAttributes().getAttributesResponse().hasRequirement(new ASN1ObjectIdentifier("1.2.840.113549.1.9.7")));
        System.out.println("bound: " + only(bound.simpleEnrollPoP(false, request("bound"), signer(), auth)).getSubject());
        refused("not bound", () -> bound.simpleEnroll(false, request("loose").build(signer()), auth));
        refused("bound elsewhere", () -> elsewhere.simpleEnrollPoP(false, request("relayed"), signer(), auth));

        made("key made", free.simpleEnrollWithServersideCreation(request("made").build(signer()), auth));
        made("key made for nobody's signature", free.simpleEnrollWithServersideCreation(request("unsigned").build(zeros()), auth));
        refused("key made, not bound", () -> bound.simpleEnrollWithServersideCreation(request("made-loose").build(signer()), auth));
        refused("nobody's signature", () -> free.simpleEnroll(false, request("unsigned").build(zeros()), auth));
        refused("nobody's signature, bound", () -> bound.simpleEnrollPoP(false, request("unsigned"), zeros(), auth));

        X509Certificate own = (X509Certificate)CertificateFactory.getInstance("X.509").generateCertificate(Files.newInputStream(Paths.get(args[4])));
        SubjectKeyIdentifier id = SubjectKeyIdentifier.fromExtensions(new JcaX509CertificateHolder(own).getExtensions());
        Files.write(Paths.get(args[5]), request("sealed").addAttribute(new ASN1ObjectIdentifier("1.2.840.113549.1.9.16.2.54"), new DEROctetString(id.getKeyIdentifier())).build(zeros()).getEncoded());
    }
}
