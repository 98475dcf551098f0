// Enrolls, renews and waits by Bouncy Castle's ESTService: java -cp bcpkix.jar:bcprov.jar:bcutil.jar Enroll.java HOST:PORT CA.pem USER PASSWORD

import java.io.ByteArrayInputStream;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.SecureRandom;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.Collections;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;

import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.pkcs.PKCS10CertificationRequestBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

public class Enroll {
    static String host;
    static X509Certificate ca;

    static ESTService service(String label, KeyManager[] keys) throws Exception {
        JsseESTServiceBuilder b = new JsseESTServiceBuilder(host, JcaJceUtils.getCertPathTrustManager(Collections.singleton(new TrustAnchor(ca, null)), null));
        if (label != null) {
            b.withLabel(label);
        }
        if (keys != null) {
            b.withKeyManagers(keys);
        }
        return b.build();
    }

    static PKCS10CertificationRequest request(String cn, KeyPair key) throws Exception {
        PKCS10CertificationRequestBuilder b = new JcaPKCS10CertificationRequestBuilder(new X500Name("CN=" + cn), key.getPublic());
        ContentSigner signer = new JcaContentSignerBuilder("SHA256WITHECDSA").build(key.getPrivate());
        return b.build(signer);
    }

    static X509CertificateHolder only(EnrollmentResponse r) throws Exception {
        if (r.getStore().getMatches(null).size() != 1) {
            throw new Exception("not exactly one certificate");
        }
        return r.getStore().getMatches(null).iterator().next();
    }

    public static void main(String[] args) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        host = args[0];
        ca = (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(Files.newInputStream(Paths.get(args[1])));
        ESTAuth auth = new JcaHttpAuthBuilder(null, args[2], args[3].toCharArray()).setNonceGenerator(new SecureRandom()).build();
        ESTAuth wrong = new JcaHttpAuthBuilder(null, args[2], "wrong-password".toCharArray()).setNonceGenerator(new SecureRandom()).build();
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(256);
        KeyPair key = generator.generateKeyPair();

        ESTService est = service(null, null);
        X509CertificateHolder issuer = est.getCACerts().getCertificateStore().getMatches(null).iterator().next();
        System.out.println("cacerts " + est.getCACerts().getCertificateStore().getMatches(null).size() + " " + issuer.getSubject().getRDNs()[0].getFirst().getType().getId().replace("2.5.4.3", "CN") + "=" + issuer.getSubject().getRDNs()[0].getFirst().getValue());
        System.out.println("csrattrs " + est.getCSRAttributes().getAttributesResponse().getRequirements().size());
        CSRRequestResponse none = service("modern", null).getCSRAttributes();
        System.out.println(none.hasAttributesResponse() ? "csrattrs where there are none" : "no csrattrs");

        X509CertificateHolder first = only(est.simpleEnroll(false, request("dev", key), auth));
        System.out.println("enrolled " + first.getSubject());

        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        X509Certificate own = (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(first.getEncoded()));
        store.setKeyEntry("own", key.getPrivate(), new char[0], new X509Certificate[]{own});
        KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        factory.init(store, new char[0]);
        X509CertificateHolder second = only(service(null, factory.getKeyManagers()).simpleEnroll(true, request("dev", key), null));
        if (second.getSerialNumber().equals(first.getSerialNumber())) {
            throw new Exception("not renewed");
        }
        System.out.println("renewed " + second.getSubject());

        try {
            est.simpleEnroll(false, request("dev", key), wrong);
            System.out.println("enrolled with a wrong password");
        } catch (ESTException e) {
            System.out.println("refused " + e.getStatusCode());
        }

        ESTService manual = service("manual", null);
        PKCS10CertificationRequest held = request("dev.approve.test", key);
        EnrollmentResponse r = manual.simpleEnroll(false, held, auth);
        if (r.isCompleted()) {
            throw new Exception("nobody approved");
        }
        System.out.println("pending " + Math.round((r.getNotBefore() - System.currentTimeMillis()) / 1000.0));
        while (!r.isCompleted()) {
            Thread.sleep(500);
            if (r.canRetry()) {
                r = manual.simpleEnroll(r);
            }
        }
        System.out.println("approved " + only(r).getSubject());
    }
}
